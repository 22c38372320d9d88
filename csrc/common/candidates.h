// The candidates of a position, equal ones merged into the first of them, and their rows of the similarity table:
//
//   sum_j w_j ((1 - token_alpha) delta(y_j) + token_alpha R[y_j])
//
// See smoothed_target in backends/reference.py.
#pragma once

#include "common/arguments.h"
#include "common/row_terms.h"

namespace smoothloss {
namespace SMOOTHLOSS_ISA {

struct Candidate {
    int64_t token;  // -1: none
    float weight;
};

SMOOTHLOSS_HD int64_t candidate_token(const SmoothedTargetArguments& a, int64_t j, int64_t position) {
    const void* tokens = j == 0 ? a.target : a.samples;
    int64_t at = j == 0 ? position : (j - 1) * a.batch * a.length + position;
    if (a.are_int64) return static_cast<const int64_t*>(tokens)[at];
    return static_cast<const int32_t*>(tokens)[at];
}

SMOOTHLOSS_HD float sample_weight(const SmoothedTargetArguments& a, int64_t at) {
    if (!a.sample_weights) return 1.0f / static_cast<float>(a.num_candidates - 1);
    return a.are_double ? static_cast<float>(static_cast<const double*>(a.sample_weights)[at])
                        : static_cast<const float*>(a.sample_weights)[at];
}

SMOOTHLOSS_HD float candidate_weight(const SmoothedTargetArguments& a, int64_t j, int64_t sequence) {
    if (j == 0) return static_cast<float>(1 - a.alpha) * (a.target_weights ? a.target_weights[sequence] : 1.0f);
    return static_cast<float>(a.alpha) * sample_weight(a, (j - 1) * a.batch + sequence);
}

// Candidate j with the weights of all that equal it, in their order; none where an earlier one equals it. `sequence` is
// position / length.
SMOOTHLOSS_HD Candidate merged_candidate(const SmoothedTargetArguments& a, int64_t j, int64_t position,
                                         int64_t sequence) {
    int64_t token = candidate_token(a, j, position);
    bool ignored = candidate_token(a, 0, position) == a.ignore_index || token == a.ignore_index || token < 0;
    if (ignored) return {-1, 0};
    float weight = 0;
    for (int64_t k = 0; k < a.num_candidates; ++k) {
        if (candidate_token(a, k, position) != token) continue;
        if (k < j) return {-1, 0};
        weight += candidate_weight(a, k, sequence);
    }
    return {token, weight};
}

struct Slot {
    int32_t index;
    float weight;
};

// Slot 0 of a candidate is its own token, slot k its k-th neighbour.
SMOOTHLOSS_HD Slot candidate_slot(const SmoothedTargetArguments& a, const Candidate& candidate, int64_t k) {
    if (k == 0) {
        bool has_table = a.table_indices != nullptr || a.num_tokens != 0;  // one without neighbours has no indices
        float keep = has_table ? static_cast<float>(1 - a.token_alpha) : 1.0f;
        // Beyond int32 is beyond any vocabulary: such an index must not wrap around into it.
        int64_t index = candidate.token < INT32_MAX ? candidate.token : INT32_MAX;
        return {static_cast<int32_t>(index), keep * candidate.weight};
    }
    if (candidate.token < 0 || candidate.token >= a.num_tokens) return {-1, 0};
    int64_t at = candidate.token * a.num_neighbours + k - 1;
    int32_t index = a.table_indices[at];
    float smoothing = static_cast<float>(a.token_alpha) * candidate.weight;
    return {index, index < 0 ? 0.0f : smoothing * a.table_weights[at]};
}

SMOOTHLOSS_HD float candidate_tail(const SmoothedTargetArguments& a, const Candidate& candidate) {
    if (!a.table_tail || candidate.token < 0 || candidate.token >= a.num_tokens) return 0;
    return static_cast<float>(a.token_alpha) * candidate.weight * a.table_tail[candidate.token];
}

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
