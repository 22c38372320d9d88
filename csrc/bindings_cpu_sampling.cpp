#include "bindings_cpu_sampling.h"

#include "bindings_common.h"
#include "cpu/sampling.h"

namespace smoothloss {
namespace {

// (slots_ptr, segments_ptr, by_rank_ptr, num_tokens, width)
using RowsTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t>;

SegmentRows make_rows(const RowsTuple& t) {
    auto [slots, segments, by_rank, num_tokens, width] = t;
    require(num_tokens >= 1 && width >= 1, "rows: got the shape (" + std::to_string(num_tokens) + ", " +
                                               std::to_string(width) + "), expected (V >= 1, W >= 1)");
    require(slots != 0 && segments != 0 && by_rank != 0, "rows: got a null pointer");
    return {static_cast<const double*>(pointer(slots)), static_cast<const Segment*>(pointer(segments)),
            static_cast<const int64_t*>(pointer(by_rank)), num_tokens, width};
}

void check_tokens(const SegmentDraws& a) {
    for (int64_t n = 0; n < a.positions; ++n) {
        if (a.tokens[n] >= 0 && a.tokens[n] < a.rows.num_tokens) continue;
        throw std::out_of_range("tokens: got " + std::to_string(a.tokens[n]) + ", expected 0 <= token < " +
                                std::to_string(a.rows.num_tokens));
    }
}

// number (L, N) float64, tokens (N) int64; out: drawn (L, N) int64, log_ratio (L, N) float64
void draw(uintptr_t number, uintptr_t tokens, const RowsTuple& rows, int64_t samples, int64_t positions,
          uintptr_t drawn, uintptr_t log_ratio, int threads, const std::string&) {
    require(samples >= 0 && positions >= 0, "number: got a negative size");
    require(threads >= 1, "threads: got " + std::to_string(threads) + ", expected at least 1");
    bool empty = samples * positions == 0;
    require(empty || (number != 0 && tokens != 0 && drawn != 0 && log_ratio != 0), "number: got a null pointer");
    SegmentDraws a{make_rows(rows),
                   static_cast<const double*>(pointer(number)),
                   static_cast<const int64_t*>(pointer(tokens)),
                   samples,
                   positions,
                   static_cast<int64_t*>(pointer(drawn)),
                   static_cast<double*>(pointer(log_ratio))};
    py::gil_scoped_release release;
    check_tokens(a);
    draw_segments(a, threads);
}

}  // namespace

void bind_sampling(py::module_& m) {
    m.def("draw_segments", &draw);
}

}  // namespace smoothloss
