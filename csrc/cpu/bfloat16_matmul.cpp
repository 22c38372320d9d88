#include "cpu/bfloat16_matmul.h"

#include <algorithm>
#include <stdexcept>

#include "cpu/parallel.h"
#include "cpu/processor.h"

namespace {

constexpr const char* kMissing = "bfloat16_matmul: this machine or this build does not have it";

}

#ifdef SMOOTHLOSS_HAS_AVX512BF16

#include <immintrin.h>

#include "cpu/bfloat16_panels.h"
#include "cpu/bfloat16_registers.h"
#ifdef SMOOTHLOSS_HAS_AMX
#include "cpu/bfloat16_tiles.h"
#endif

namespace smoothloss {
namespace {

// Asks for the lines of b that the panel from column `first` on is packed from: what some rows' products have time for.
void prefetch(const MatmulArguments& m, int64_t first, int64_t row, int64_t rows) {
    if (first >= m.columns) return;
    constexpr int64_t kLine = 32;  // elements
    int64_t lines = (m.inner + kLine - 1) / kLine, total = lines * std::min<int64_t>(kPanelColumns, m.columns - first);
    int64_t share = (total * rows + m.rows - 1) / m.rows, begin = row / rows * share;
    for (int64_t i = begin; i < std::min(begin + share, total); ++i)
        __builtin_prefetch(m.b + (first + i / lines) * m.b_stride + i % lines * kLine, 0, 2);
}

// Calls work(kernel, first column, columns, scratch) for so many panels of 32 columns at a time.
template <typename Kernel, typename Work>
void for_panels(int64_t columns, int64_t inner, int64_t together, int threads, Work&& work) {
    int64_t step = together * kPanelColumns, steps = (columns + step - 1) / step;
    int workers = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, steps)));
    int64_t size = panel_pairs(inner) * step;
    Scratch<uint32_t> scratch(workers * size);
    share_out(steps, 1, workers, [&](Chunks& chunks, int worker) {
        Kernel kernel;
        chunks.for_each([&](int64_t mine, int64_t) {
            work(kernel, mine * step, std::min(step, columns - mine * step), scratch.data() + worker * size);
        });
    });
}

template <typename Kernel>
void multiply(const MatmulArguments& m, int threads) {
    typename Kernel::Rows rows(m.a, m.a_stride, m.rows, m.inner, threads);
    for_panels<Kernel>(
        m.columns, m.inner, 1, threads, [&](Kernel& kernel, int64_t first, int64_t columns, uint32_t* panel) {
            pack_panel(m, first, panel);
            const float* bias = m.bias ? m.bias + first : nullptr;
            Block<float> block{bias, m.out + first, m.rows, m.inner, m.out_stride, columns};
            int64_t next = first + threads * kPanelColumns;
            kernel.multiply(rows, block, panel, [&](int64_t row, int64_t count) { prefetch(m, next, row, count); });
        });
}

template <typename Kernel, typename T>
void multiply_bands(const BandedMatmulArguments& m, int threads) {
    int64_t longest = 0;
    std::vector<typename Kernel::Rows> rows;
    auto begin = [&](int64_t band) { return band ? m.ends[band - 1] : 0; };
    for (int64_t band = 0; band < m.bands; ++band) {
        int64_t inner = m.ends[band] - begin(band);
        longest = std::max(longest, inner);
        rows.emplace_back(m.a + begin(band), m.a_stride, m.rows, inner, threads);
    }
    // A row of b is read for several panels, which stay in the cache: rows far apart are what the memory is slow at.
    constexpr int64_t kMost = 4, kBytes = 1 << 19;
    int64_t panel_bytes = 4 * panel_pairs(longest) * kPanelColumns;
    int64_t together = std::clamp<int64_t>(kBytes / std::max<int64_t>(panel_bytes, 1), 1, kMost);
    auto work = [&](Kernel& kernel, int64_t first, int64_t columns, uint32_t* panels) {
        for (int64_t band = 0; band < m.bands; ++band) {
            int64_t start = begin(band), inner = m.ends[band] - start;
            pack_panels(m, start, m.ends[band], first, columns, panels);
            for (int64_t j = 0; j < columns; j += kPanelColumns) {
                T* out = static_cast<T*>(m.out) + band * m.rows * m.columns + first + j;
                Block<T> block{nullptr, out, m.rows, inner, m.columns, std::min<int64_t>(kPanelColumns, columns - j)};
                const uint32_t* panel = panels + j * panel_pairs(inner);
                kernel.multiply(rows[static_cast<size_t>(band)], block, panel, [](int64_t, int64_t) {});
            }
        }
    };
    for_panels<Kernel>(m.columns, longest, together, threads, work);
}

template <typename Kernel>
void multiply(const BandedMatmulArguments& m, int threads) {
    m.is_narrow ? multiply_bands<Kernel, uint16_t>(m, threads) : multiply_bands<Kernel, float>(m, threads);
}

template <typename Arguments>
void multiply_with(const std::string& isa, const Arguments& m, int threads) {
#ifdef SMOOTHLOSS_HAS_AMX
    if (isa == "amx") return multiply<InTiles>(m, threads);
#endif
    multiply<InRegisters>(m, threads);
}

// The fastest first.
std::vector<std::string> found_isas() {
    std::vector<std::string> isas;
#ifdef SMOOTHLOSS_HAS_AMX
    if (processor().avx512bf16 && may_use_amx()) isas.push_back("amx");
#endif
    if (processor().avx512bf16) isas.push_back("avx512bf16");
    return isas;
}

// Throws std::invalid_argument for a name that is not among bfloat16_matmul_isas().
const std::string& chosen(const std::string& isa) {
    const std::vector<std::string>& isas = bfloat16_matmul_isas();
    auto found = isa.empty() ? isas.begin() : std::find(isas.begin(), isas.end(), isa);
    if (found == isas.end())
        throw std::invalid_argument(std::string(kMissing) + (isa.empty() ? "" : ": isa: got '" + isa + "'"));
    return *found;
}

}  // namespace

const std::vector<std::string>& bfloat16_matmul_isas() {
    static const std::vector<std::string> isas = found_isas();
    return isas;
}

void bfloat16_matmul(const MatmulArguments& m, int threads, const std::string& isa) {
    multiply_with(chosen(isa), m, threads);
}

void bfloat16_banded_matmul(const BandedMatmulArguments& m, int threads, const std::string& isa) {
    multiply_with(chosen(isa), m, threads);
}

}  // namespace smoothloss

#else

namespace smoothloss {

const std::vector<std::string>& bfloat16_matmul_isas() {
    static const std::vector<std::string> none;
    return none;
}

void bfloat16_matmul(const MatmulArguments&, int, const std::string&) {
    throw std::invalid_argument(kMissing);
}

void bfloat16_banded_matmul(const BandedMatmulArguments&, int, const std::string&) {
    throw std::invalid_argument(kMissing);
}

}  // namespace smoothloss

#endif
