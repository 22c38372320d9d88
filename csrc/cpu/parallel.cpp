#include "cpu/parallel.h"

#ifdef _OPENMP
#include <omp.h>
#else
#include <system_error>
#include <thread>
#include <vector>
#endif

namespace smoothloss {

#ifdef _OPENMP

void run_workers(int workers, void (*task)(void*, int), void* context) {
    if (workers <= 1) return task(context, 0);
#pragma omp parallel num_threads(workers)
    task(context, omp_get_thread_num());
}

#else

// Threads are started for each call: tens of microseconds, and nothing that a fork could break.
void run_workers(int workers, void (*task)(void*, int), void* context) {
    std::vector<std::thread> others;
    try {
        for (int worker = 1; worker < workers; ++worker) others.emplace_back(task, context, worker);
    } catch (const std::system_error&) {
        // The system gives no more threads. Those that are there take all chunks.
    }
    task(context, 0);
    for (std::thread& other : others) other.join();
}

#endif

}  // namespace smoothloss
