// How the rows of a call are shared out among threads.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "common/arguments.h"
#include "cpu/huge_pages.h"

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
    if (threads == 1) return function(int64_t{0}, rows, 0);
    int64_t chunk = std::max<int64_t>(1, rows / (threads * 16));
    int64_t chunks = (rows + chunk - 1) / chunk;
    (void)chunks;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic)
        for (int64_t c = 0; c < chunks; ++c) function(c * chunk, std::min(rows, (c + 1) * chunk), thread);
    }
#else
    function(int64_t{0}, rows, 0);
#endif
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
