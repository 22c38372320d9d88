// The CPU kernels without Python, so that they can be tried wherever a program can be run: each instruction set that
// this machine has, against the formulas in double precision. Prints what fails, and how many checks passed.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "common/philox.h"
#include "cpu/bfloat16_matmul.h"
#include "cpu/isa.h"
#include "cpu/sparse_cross_entropy.h"
#include "cpu/target_indices.h"
#include "cpu/token_statistics.h"

using namespace smoothloss;

namespace {

int passed = 0, failed = 0;

void check(bool holds, const std::string& what) {
    ++(holds ? passed : failed);
    if (!holds) std::printf("FAILED: %s\n", what.c_str());
}

// Numbers as the kernels store them.
struct Float32 {
    static constexpr DataType type = DataType::float32;
    using Stored = float;
    using Accumulator = float;
    static constexpr double rounding = 6e-8;
    static double read(float v) { return static_cast<double>(v); }
    static float stored(double v) { return static_cast<float>(v); }
};

struct Float64 {
    static constexpr DataType type = DataType::float64;
    using Stored = double;
    using Accumulator = double;
    static constexpr double rounding = 1.2e-16;
    static double read(double v) { return v; }
    static double stored(double v) { return v; }
};

struct BFloat {
    static constexpr DataType type = DataType::bfloat16;
    using Stored = uint16_t;
    using Accumulator = float;
    static constexpr double rounding = 4e-3;
    static double read(uint16_t v) {
        uint32_t bits = static_cast<uint32_t>(v) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof(value));
        return static_cast<double>(value);
    }
    static uint16_t stored(double v) {
        float value = static_cast<float>(v);
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        return static_cast<uint16_t>(bits >> 16);
    }
};

// Logits and a sparse target of each row, with an empty slot and one class named twice.
template <class Number>
struct Problem {
    using T = typename Number::Accumulator;

    Problem(int64_t rows_, int64_t classes_, int64_t slots_)
        : rows(rows_),
          classes(classes_),
          slots(slots_),
          logits(size()),
          index(places()),
          weight(places()),
          uniform(static_cast<size_t>(rows_)) {
        std::mt19937 bits(static_cast<unsigned>(1000 * classes + slots));
        std::uniform_real_distribution<double> share(0, 1);
        for (auto& z : logits) z = Number::stored(10 * share(bits) - 5);
        for (size_t i = 0; i < index.size(); ++i) {
            index[i] = static_cast<int32_t>(bits() % static_cast<unsigned>(classes));
            if (i % 7 == 5) index[i] = -1;
            if (i % 5 == 4) index[i] = index[i - 1];
            weight[i] = static_cast<T>(share(bits));
        }
        for (auto& u : uniform) u = static_cast<T>(share(bits));
    }

    size_t size() const { return static_cast<size_t>(rows * classes); }
    size_t places() const { return static_cast<size_t>(rows * slots); }
    Logits given() const { return {logits.data(), Number::type, rows, classes, classes}; }
    Targets targets() const {
        return {index.data(), false, weight.data(), uniform.data(), nullptr, slots, false, -100};
    }
    double z(int64_t row, int64_t v) const { return Number::read(logits[static_cast<size_t>(row * classes + v)]); }

    int64_t rows, classes, slots;
    std::vector<typename Number::Stored> logits;
    std::vector<int32_t> index;
    std::vector<T> weight, uniform;
};

constexpr RowOptions kOptionsUsed = {0.1, 0.2, 0.01, 1.0, 0.0};

// What a row's loss and gradient are by definition.
struct Expected {
    double loss = 0, lse = 0, entropy = 0, mass = 0;
    std::vector<double> log_p, p, gradient;
};

template <class Number>
Expected expected(const Problem<Number>& p, int64_t row) {
    const RowOptions& o = kOptionsUsed;
    Expected e;
    double sum = 0, mean = 0, classes = static_cast<double>(p.classes);
    for (int64_t v = 0; v < p.classes; ++v) sum += std::exp(p.z(row, v)), mean += p.z(row, v) / classes;
    e.lse = std::log(sum);
    for (int64_t v = 0; v < p.classes; ++v) e.log_p.push_back(p.z(row, v) - e.lse);
    // Not e^log_p, which errs by as many roundings as log_p is large.
    for (int64_t v = 0; v < p.classes; ++v) e.p.push_back(std::exp(p.z(row, v)) / sum);
    for (size_t v = 0; v < e.p.size(); ++v) e.entropy -= e.p[v] * e.log_p[v];
    std::vector<double> q(static_cast<size_t>(p.classes));
    for (int64_t s = 0; s < p.slots; ++s) {
        size_t at = static_cast<size_t>(row * p.slots + s);
        if (p.index[at] < 0) continue;
        q[static_cast<size_t>(p.index[at])] += (1 - o.label_smoothing) * static_cast<double>(p.weight[at]);
        e.mass += static_cast<double>(p.weight[at]);
    }
    double given = static_cast<double>(p.uniform[static_cast<size_t>(row)]);
    e.mass += given;
    double uniform = (1 - o.label_smoothing) * given + o.label_smoothing * e.mass;
    e.loss = uniform * (e.lse - mean) + o.z_loss * e.lse * e.lse - o.entropy * e.entropy;
    for (size_t v = 0; v < q.size(); ++v) {
        double log_p = e.log_p[v];
        e.loss -= q[v] * log_p;
        e.gradient.push_back((e.mass + 2 * o.z_loss * e.lse + o.entropy * (log_p + e.entropy)) * e.p[v] -
                             uniform / classes - q[v]);
    }
    return e;
}

// Every number within a few roundings of numbers as large as those of a row.
template <class Number, class T>
bool close(T got, double want, double scale, double roundings) {
    return std::abs(static_cast<double>(got) - want) <= scale * roundings * Number::rounding;
}

template <class Number>
void cross_entropy(const std::string& isa, int64_t classes, int64_t slots) {
    using T = typename Number::Accumulator;
    Problem<Number> p(5, classes, slots);
    TargetIndices indices(p.targets(), p.rows, classes);
    size_t rows = static_cast<size_t>(p.rows);
    std::vector<T> loss(rows), mass(rows), statistics(rows * kStatistics), one(1, T(1));
    std::vector<typename Number::Stored> fused(p.size()), apart(p.size());
    Execution execution{1, isa};
    ForwardBackwardArguments both{p.given(),
                                  indices.targets(),
                                  {},
                                  kOptionsUsed,
                                  loss.data(),
                                  mass.data(),
                                  {fused.data(), Number::type, classes}};
    sparse_cross_entropy_forward_backward(both, execution);
    std::vector<T> fused_loss = loss;
    sparse_cross_entropy_forward(
        {p.given(), indices.targets(), {}, kOptionsUsed, loss.data(), mass.data(), statistics.data()}, execution);
    sparse_cross_entropy_backward({p.given(),
                                   indices.targets(),
                                   {},
                                   kOptionsUsed,
                                   one.data(),
                                   true,
                                   nullptr,
                                   statistics.data(),
                                   mass.data(),
                                   {apart.data(), Number::type, classes}},
                                  execution);
    // The accumulator of bfloat16 is float32: only what is stored is rounded to it.
    using Accumulated = std::conditional_t<std::is_same_v<T, double>, Float64, Float32>;
    bool good = true;
    for (int64_t n = 0; n < p.rows; ++n) {
        Expected e = expected(p, n);
        size_t row = static_cast<size_t>(n);
        good = good && close<Accumulated>(loss[row], e.loss, 10 * e.mass, 8);
        good = good && close<Accumulated>(fused_loss[row], e.loss, 10 * e.mass, 8);
        for (int64_t v = 0; v < classes; ++v) {
            size_t at = static_cast<size_t>(n * classes + v);
            double want = e.gradient[static_cast<size_t>(v)];
            good = good && close<Number>(Number::read(fused[at]), want, 1 + e.mass, 8);
            good = good && close<Number>(Number::read(apart[at]), want, 1 + e.mass, 8);
        }
    }
    check(good, isa + " cross-entropy, type " + std::to_string(static_cast<int>(Number::type)) + ", classes " +
                    std::to_string(classes) + ", slots " + std::to_string(slots));
}

template <class Number>
void statistics(const std::string& isa, int64_t classes, int64_t slots) {
    using T = typename Number::Accumulator;
    Problem<Number> p(5, classes, slots);
    TargetIndices indices(p.targets(), p.rows, classes);
    size_t rows = static_cast<size_t>(p.rows);
    std::vector<T> log_prob(p.places()), log_rest(rows), entropy(rows), lse(rows), saved(rows * kSavedStatistics);
    std::vector<int64_t> argmax(rows);
    RowOptions options{0, 0, 0, 1, 0};
    token_statistics_forward({p.given(), indices.targets(), options, log_prob.data(), log_rest.data(), entropy.data(),
                              lse.data(), argmax.data(), saved.data()},
                             {1, isa});
    using Accumulated = std::conditional_t<std::is_same_v<T, double>, Float64, Float32>;
    bool good = true;
    for (int64_t n = 0; n < p.rows; ++n) {
        Expected e = expected(p, n);
        size_t row = static_cast<size_t>(n);
        good = good && close<Accumulated>(entropy[row], e.entropy, 10, 4) && close<Accumulated>(lse[row], e.lse, 10, 4);
        good = good && argmax[row] == std::max_element(e.log_p.begin(), e.log_p.end()) - e.log_p.begin();
        for (int64_t s = 0; s < slots; ++s) {
            size_t at = static_cast<size_t>(n * slots + s);
            if (p.index[at] < 0) continue;
            good = good && close<Accumulated>(log_prob[at], e.log_p[static_cast<size_t>(p.index[at])], 10, 4);
        }
    }
    check(good, isa + " statistics, type " + std::to_string(static_cast<int>(Number::type)) + ", classes " +
                    std::to_string(classes));
}

// The same bits, whatever the number of threads.
void threads(const std::string& isa) {
    Problem<Float32> p(301, 1001, 3);
    TargetIndices indices(p.targets(), p.rows, p.classes);
    std::vector<std::vector<float>> results;
    for (int workers : {1, 2, 5}) {
        std::vector<float> loss(static_cast<size_t>(p.rows)), mass(loss.size()), out(p.size());
        sparse_cross_entropy_forward_backward({p.given(),
                                               indices.targets(),
                                               {},
                                               kOptionsUsed,
                                               loss.data(),
                                               mass.data(),
                                               {out.data(), DataType::float32, p.classes}},
                                              {workers, isa});
        out.insert(out.end(), loss.begin(), loss.end());
        results.push_back(out);
    }
    check(results[0] == results[1] && results[0] == results[2], isa + " results depend on the number of threads");
}

void coins(const std::string& isa) {
    bool good = true;
    for (int64_t count : {1, 7, 64, 129}) {
        std::vector<int64_t> drawn(static_cast<size_t>(count));
        draw_kernels_for(isa).coins(0x123456789abcdefu, 3, 11, portable::kEditReplaced, count, drawn.data());
        for (int64_t i = 0; i < count; ++i) {
            auto words = portable::philox(0x123456789abcdefu, static_cast<uint32_t>(i), 3, 11, portable::kEditReplaced);
            good = good && drawn[static_cast<size_t>(i)] == portable::coin(words);
        }
    }
    check(good, isa + " coins");
}

std::vector<uint16_t> small_integers(size_t count, std::mt19937& bits) {
    std::vector<uint16_t> values(count);
    for (auto& v : values) v = BFloat::stored(static_cast<double>(bits() % 9) - 4);
    return values;
}

void bfloat16_product(const std::string& isa, size_t rows, size_t inner) {
    constexpr size_t kColumns = 35;
    std::mt19937 bits(1);
    std::vector<uint16_t> a = small_integers(rows * inner, bits), b = small_integers(kColumns * inner, bits);
    std::vector<float> bias(kColumns), out(rows * kColumns);
    for (auto& v : bias) v = static_cast<float>(bits() % 9);
    auto n = static_cast<int64_t>(rows), k = static_cast<int64_t>(inner);
    bfloat16_matmul({a.data(), b.data(), bias.data(), out.data(), n, kColumns, k, k, k, kColumns}, 2, isa);
    bool good = true;
    for (size_t i = 0; i < rows; ++i) {
        for (size_t j = 0; j < kColumns; ++j) {
            double sum = static_cast<double>(bias[j]);
            for (size_t m = 0; m < inner; ++m) sum += BFloat::read(a[i * inner + m]) * BFloat::read(b[j * inner + m]);
            good = good && sum == static_cast<double>(out[i * kColumns + j]);  // small integers: exact
        }
    }
    check(good, isa + " bfloat16_matmul");
}

void bfloat16_bands(const std::string& isa, size_t rows, const std::vector<int64_t>& ends) {
    constexpr size_t kColumns = 35;
    auto inner = static_cast<size_t>(ends.back());
    std::mt19937 bits(1);
    std::vector<uint16_t> a = small_integers(rows * inner, bits), b = small_integers(inner * kColumns, bits);
    std::vector<int64_t> order(inner);
    for (size_t k = 0; k < inner; ++k) order[k] = static_cast<int64_t>(k);
    std::shuffle(order.begin(), order.end(), bits);
    size_t block = rows * kColumns;
    std::vector<float> out(ends.size() * block);
    std::vector<uint16_t> narrow(out.size());
    BandedMatmulArguments m{a.data(),
                            b.data(),
                            order.data(),
                            ends.data(),
                            out.data(),
                            false,
                            static_cast<int64_t>(rows),
                            kColumns,
                            ends.back(),
                            static_cast<int64_t>(ends.size()),
                            ends.back(),
                            kColumns};
    bfloat16_banded_matmul(m, 2, isa);
    m.out = narrow.data();
    m.is_narrow = true;
    bfloat16_banded_matmul(m, 1, isa);
    bool good = true;
    for (size_t i = 0; i < out.size(); ++i) {
        size_t band = i / block, row = i % block / kColumns, column = i % kColumns;
        double sum = 0;
        for (int64_t k = band ? ends[band - 1] : 0; k < ends[band]; ++k)
            sum += BFloat::read(a[row * inner + static_cast<size_t>(k)]) *
                   BFloat::read(b[static_cast<size_t>(order[static_cast<size_t>(k)]) * kColumns + column]);
        good = good && sum == static_cast<double>(out[i]);  // small integers: exact
        good = good && std::abs(sum - BFloat::read(narrow[i])) <= std::ldexp(std::abs(sum), -8);  // rounded once
    }
    check(good, isa + " bfloat16_banded_matmul");
}

}  // namespace

int main() {
    for (const std::string& isa : available_isas()) {
        std::printf("%s\n", isa.c_str());
        for (int64_t classes : {1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 70, 257}) {
            for (int64_t slots : {1, 4, 40}) {
                cross_entropy<Float32>(isa, classes, slots);
                cross_entropy<Float64>(isa, classes, slots);
                cross_entropy<BFloat>(isa, classes, slots);
            }
            statistics<Float32>(isa, classes, 4);
            statistics<Float64>(isa, classes, 4);
            statistics<BFloat>(isa, classes, 4);
        }
        threads(isa);
        coins(isa);
    }
    check(available_isas().back() == "baseline", "the last instruction set is the one that every machine has");
    for (const std::string& isa : bfloat16_matmul_isas()) {
        std::printf("%s products\n", isa.c_str());
        for (size_t rows : {1, 14, 16, 17, 32, 33, 70}) {
            for (size_t inner : {0, 9, 32, 73}) bfloat16_product(isa, rows, inner);
            bfloat16_bands(isa, rows, {2, 2, 5, 9});
            bfloat16_bands(isa, rows, {33, 64, 129});
        }
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
