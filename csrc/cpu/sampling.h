// Draws of substitutes on the CPU.
#pragma once

#include <cstdint>

namespace smoothloss {

// Rows of V tokens, each of W segments of equally likely tokens, with their alias tables. What the arrays hold is said
// in smoothloss/sampling/segments.py.
struct SegmentRows {
    const double* slots;      // (V)
    const double* threshold;  // (V, W)
    const int32_t* other;     // (V, W)
    const int32_t* first;     // (V, W)
    const double* length;     // (V, W)
    const double* log_ratio;  // (V, W)
    const int64_t* by_rank;   // (V + 1)
    int64_t num_tokens, width;
};

struct SegmentDraws {
    SegmentRows rows;
    const double* number;   // (L, N)
    const int64_t* tokens;  // (N), the row of each
    int64_t samples, positions;
    int64_t* drawn;     // (L, N)
    double* log_ratio;  // (L, N)
};

void draw_segments(const SegmentDraws& arguments, int threads);

}  // namespace smoothloss
