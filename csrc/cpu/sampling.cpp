#include "cpu/sampling.h"

#include <algorithm>

namespace smoothloss {
namespace {

// Fewer draws than this are made sooner than a second thread is woken.
constexpr int64_t kMinDrawsPerThread = 1 << 13;
// A row of a large table is seldom in the cache: asked for some draws ahead, it arrives in time.
constexpr int64_t kAhead = 16;

struct Slot {
    int64_t segment;
    double share;  // where in the slot the number is, from 0 to 1
};

Slot slot_of(const SegmentRows& rows, int64_t token, double number) {
    number *= rows.slots[token];
    int64_t slot = std::min(static_cast<int64_t>(number), rows.width - 1);
    return {token * rows.width + slot, number - static_cast<double>(slot)};
}

void prefetch(const SegmentRows& rows, int64_t token, double number) {
    __builtin_prefetch(rows.segments + slot_of(rows, token, number).segment);
}

// Without a branch: it would be taken or not at random.
void draw_one(const SegmentRows& rows, int64_t token, double number, int64_t* drawn, double* log_ratio) {
    auto [index, share] = slot_of(rows, token, number);
    const Segment* segment = rows.segments + index;
    double threshold = segment->threshold;
    bool is_other = share >= threshold;
    double part = is_other ? share - threshold : share;
    double whole = is_other ? 1 - threshold : threshold;
    segment += is_other ? segment->other : 0;
    int64_t rank = static_cast<int64_t>(part / whole * segment->length) + segment->first;
    *drawn = rows.by_rank[rank];
    *log_ratio = segment->log_ratio;
}

}  // namespace

void draw_segments(const SegmentDraws& a, int threads) {
    int64_t by_work = std::max<int64_t>(1, a.samples * a.positions / kMinDrawsPerThread);
    int workers = static_cast<int>(std::min<int64_t>(threads, by_work));
#ifdef _OPENMP
#pragma omp parallel for num_threads(workers) schedule(static)
#endif
    for (int64_t l = 0; l < a.samples; ++l) {
        int64_t begin = l * a.positions;
        for (int64_t n = 0; n < a.positions; ++n) {
            int64_t ahead = std::min(n + kAhead, a.positions - 1);
            prefetch(a.rows, a.tokens[ahead], a.number[begin + ahead]);
            draw_one(a.rows, a.tokens[n], a.number[begin + n], a.drawn + begin + n, a.log_ratio + begin + n);
        }
    }
    (void)workers;
}

}  // namespace smoothloss
