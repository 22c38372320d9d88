#include "cpu/smoothed_target.h"

#include <algorithm>
#include <vector>

namespace smoothloss {
namespace {

// Fewer entries than this are written sooner than a second thread is woken.
constexpr int64_t kMinEntriesPerThread = 1 << 15;

// The candidates of one position, equal ones merged into the first of them; -1 where there is none.
struct Merged {
    std::vector<int64_t> tokens;
    std::vector<float> weights;

    explicit Merged(int64_t count) : tokens(count), weights(count) {}
};

int64_t candidate(const SmoothedTargetArguments& a, int64_t j, int64_t position) {
    int64_t at = j * a.batch * a.length + position;
    if (a.candidates_are_int64) return static_cast<const int64_t*>(a.candidates)[at];
    return static_cast<const int32_t*>(a.candidates)[at];
}

void merge(const SmoothedTargetArguments& a, int64_t position, Merged& merged) {
    bool ignored = candidate(a, 0, position) == a.ignore_index;
    for (int64_t j = 0; j < a.num_candidates; ++j) {
        int64_t token = candidate(a, j, position);
        bool used = !ignored && token >= 0 && token != a.ignore_index;
        merged.tokens[j] = -1;
        merged.weights[j] = 0;
        if (!used) continue;
        float weight = a.weights ? a.weights[j * a.batch + position / a.length] : 1.0f;
        int64_t first = 0;
        while (first < j && merged.tokens[first] != token) ++first;
        merged.tokens[first] = token;
        merged.weights[first] += weight;
    }
}

// Rows of a large table are spread over memory: asked for one position ahead, they arrive in time.
void prefetch_rows(const SmoothedTargetArguments& a, int64_t position) {
    constexpr int64_t kPerLine = 16;
    for (int64_t j = 0; j < a.num_candidates; ++j) {
        int64_t token = candidate(a, j, position);
        if (token < 0 || token >= a.num_tokens) continue;
        for (int64_t k = 0; k < a.num_neighbours; k += kPerLine) {
            __builtin_prefetch(a.table_indices + token * a.num_neighbours + k);
            __builtin_prefetch(a.table_weights + token * a.num_neighbours + k);
        }
        if (a.table_tail) __builtin_prefetch(a.table_tail + token);
    }
}

// Writes one candidate and its neighbours, and returns the mass of its tail.
float expand(const SmoothedTargetArguments& a, int64_t token, float weight, int32_t* indices, float* weights) {
    bool known = token >= 0 && token < a.num_tokens;
    float alpha = static_cast<float>(a.token_alpha);
    // Beyond int32 is beyond any vocabulary: such an index must not wrap around into it.
    indices[0] = static_cast<int32_t>(std::min<int64_t>(token, INT32_MAX));
    weights[0] = a.table_indices ? (1 - alpha) * weight : weight;
    if (!known) {
        std::fill_n(indices + 1, a.num_neighbours, -1);
        std::fill_n(weights + 1, a.num_neighbours, 0.0f);
        return 0;
    }
    const int32_t* row = a.table_indices + token * a.num_neighbours;
    const float* row_weights = a.table_weights + token * a.num_neighbours;
    float share = alpha * weight;
    for (int64_t k = 0; k < a.num_neighbours; ++k) {
        indices[1 + k] = row[k];
        weights[1 + k] = row[k] < 0 ? 0.0f : share * row_weights[k];
    }
    return a.table_tail ? share * a.table_tail[token] : 0.0f;
}

}  // namespace

void smoothed_target(const SmoothedTargetArguments& a, int threads) {
    int64_t positions = a.batch * a.length;
    int64_t slots = a.num_candidates * (a.num_neighbours + 1);
    int64_t by_work = std::max<int64_t>(1, positions * slots / kMinEntriesPerThread);
    int workers = static_cast<int>(std::min<int64_t>(threads, by_work));
    std::vector<Merged> scratch(workers, Merged(a.num_candidates));
#ifdef _OPENMP
#pragma omp parallel for num_threads(workers) schedule(static, 1)
#endif
    for (int worker = 0; worker < workers; ++worker) {
        Merged& merged = scratch[worker];
        for (int64_t n = positions * worker / workers; n < positions * (worker + 1) / workers; ++n) {
            if (n + 1 < positions) prefetch_rows(a, n + 1);
            merge(a, n, merged);
            float tail = 0;
            for (int64_t j = 0; j < a.num_candidates; ++j) {
                int64_t at = n * slots + j * (a.num_neighbours + 1);
                tail += expand(a, merged.tokens[j], merged.weights[j], a.out_indices + at, a.out_weights + at);
            }
            if (a.out_uniform) a.out_uniform[n] = tail;
        }
    }
}

}  // namespace smoothloss
