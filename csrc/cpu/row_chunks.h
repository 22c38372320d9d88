// How the rows of a call are shared out among threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/arguments.h"
#include "cpu/huge_pages.h"
#include "cpu/parallel.h"

namespace smoothloss {

// Fewer elements than this are done sooner than a second thread is woken.
constexpr int64_t kMinElementsPerThread = 1 << 15;

inline int useful_threads(const Logits& logits, int threads) {
    int64_t by_work = logits.rows * logits.classes / kMinElementsPerThread;
    return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({threads, logits.rows, by_work})));
}

// Calls function(begin, end, thread) until all rows are done. Chunks are handed out as threads get free, because rows
// without mass are nearly free and a neighbour may have taken a core.
template <class Function>
void for_row_chunks(int64_t rows, int threads, Function function) {
    int64_t chunk = threads == 1 ? std::max<int64_t>(1, rows) : std::max<int64_t>(1, rows / (threads * 16));
    share_out(rows, chunk, threads, [&](Chunks& chunks, int thread) {
        chunks.for_each([&](int64_t begin, int64_t end) { function(begin, end, thread); });
    });
}

inline int64_t element_size(DataType type) {
    if (type == DataType::float64) return 8;
    return type == DataType::float32 ? 4 : 2;
}

inline void advise_huge_pages(const Output& out, const Logits& logits) {
    if (out.data == logits.data || logits.rows == 0 || out.stride < 0) return;
    int64_t elements = (logits.rows - 1) * out.stride + logits.classes;
    prefer_huge_pages(out.data, elements * element_size(out.type));
}

}  // namespace smoothloss
