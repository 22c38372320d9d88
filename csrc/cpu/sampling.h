// Draws of substitutes on the CPU.
#pragma once

#include <cstdint>

namespace smoothloss {

// What a draw needs of a segment, side by side: a row of a large table is seldom in the cache.
struct Segment {
    double threshold;
    int32_t other, first;
    double length, log_ratio;
};
static_assert(sizeof(Segment) == 4 * sizeof(double));

// Rows of V tokens, each of W segments of equally likely tokens, with their alias tables. What the fields hold is said
// in smoothloss/sampling/segments.py.
struct SegmentRows {
    const double* slots;      // (V)
    const Segment* segments;  // (V, W)
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
