#include "cpu/smoothed_target.h"

#include <algorithm>

#include "common/candidates.h"
#include "cpu/parallel.h"

namespace smoothloss {

using namespace portable;

namespace {

// Fewer entries than this are written sooner than a second thread is woken.
constexpr int64_t kMinEntriesPerThread = 1 << 15;

// Rows of a large table are spread over memory: asked for one position ahead, they arrive in time.
void prefetch_rows(const SmoothedTargetArguments& a, int64_t position) {
    constexpr int64_t kPerLine = 16;
    for (int64_t j = 0; j < a.num_candidates; ++j) {
        int64_t token = candidate_token(a, j, position);
        if (token < 0 || token >= a.num_tokens) continue;
        for (int64_t k = 0; k < a.num_neighbours; k += kPerLine) {
            __builtin_prefetch(a.table_indices + token * a.num_neighbours + k);
            __builtin_prefetch(a.table_weights + token * a.num_neighbours + k);
        }
        if (a.table_tail) __builtin_prefetch(a.table_tail + token);
    }
}

// What candidate_slot says of a known token's neighbours, in a form that compilers vectorise.
void copy_neighbours(const SmoothedTargetArguments& a, const Candidate& known, int32_t* __restrict indices,
                     float* __restrict weights) {
    const int32_t* row = a.table_indices + known.token * a.num_neighbours;
    const float* row_weights = a.table_weights + known.token * a.num_neighbours;
    float smoothing = static_cast<float>(a.token_alpha) * known.weight;
    for (int64_t k = 0; k < a.num_neighbours; ++k) indices[k] = row[k];
    for (int64_t k = 0; k < a.num_neighbours; ++k) weights[k] = row[k] < 0 ? 0.0f : smoothing * row_weights[k];
}

void build_position(const SmoothedTargetArguments& a, int64_t n, int64_t sequence) {
    int64_t width = a.num_neighbours + 1;
    float tail = 0;
    for (int64_t j = 0; j < a.num_candidates; ++j) {
        Candidate merged = merged_candidate(a, j, n, sequence);
        int64_t at = (n * a.num_candidates + j) * width;
        Slot own = candidate_slot(a, merged, 0);
        a.out_indices[at] = own.index;
        a.out_weights[at] = own.weight;
        if (merged.token >= 0 && merged.token < a.num_tokens) {
            copy_neighbours(a, merged, a.out_indices + at + 1, a.out_weights + at + 1);
        } else {
            std::fill_n(a.out_indices + at + 1, a.num_neighbours, -1);
            std::fill_n(a.out_weights + at + 1, a.num_neighbours, 0.0f);
        }
        tail += candidate_tail(a, merged);
    }
    if (a.out_uniform) a.out_uniform[n] = tail;
}

template <class Token>
bool any_wrong(const Token* tokens, const Token* target, int64_t positions, int64_t ignore_index) {
    bool wrong = false;
    for (int64_t i = 0; i < positions; ++i) {
        wrong |= (tokens[i] < 0) & (tokens[i] != ignore_index) & (target[i] != ignore_index);
    }
    return wrong;
}

template <class Token>
bool any_wrong(const SmoothedTargetArguments& a) {
    const Token* target = static_cast<const Token*>(a.target);
    const Token* samples = static_cast<const Token*>(a.samples);
    int64_t positions = a.batch * a.length;
    if (any_wrong(target, target, positions, a.ignore_index)) return true;
    for (int64_t j = 0; j + 1 < a.num_candidates; ++j) {
        if (any_wrong(samples + j * positions, target, positions, a.ignore_index)) return true;
    }
    return false;
}

}  // namespace

bool has_wrong_candidate(const SmoothedTargetArguments& a) {
    return a.are_int64 ? any_wrong<int64_t>(a) : any_wrong<int32_t>(a);
}

void smoothed_target(const SmoothedTargetArguments& a, int threads) {
    int64_t positions = a.batch * a.length;
    int64_t slots = a.num_candidates * (a.num_neighbours + 1);
    int64_t by_work = std::max<int64_t>(1, positions * slots / kMinEntriesPerThread);
    int workers = static_cast<int>(std::min<int64_t>(threads, by_work));
    share_out(positions, even_share(positions, workers), workers, [&](Chunks& chunks, int) {
        chunks.for_each([&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
                if (n + 1 < positions) prefetch_rows(a, n + 1);
                build_position(a, n, n / a.length);
            }
        });
    });
}

}  // namespace smoothloss
