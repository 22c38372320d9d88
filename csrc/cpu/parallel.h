// Work shared out among threads. They are those of the OpenMP library that torch has loaded, which is looked up at run
// time and not linked: a second library would keep a second pool of threads, and on macOS end the process. Where there
// is none, they are the standard library's.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "common/row_terms.h"

namespace smoothloss {

// Calls task(context, worker) at the same time for the workers 0 .. workers - 1, or for the first few of them where
// there are not enough threads.
void run_workers(int workers, void (*task)(void* context, int worker), void* context);

// Whether there is an OpenMP library to take threads from.
bool has_openmp();

// The numbers 0 .. count - 1, handed out in chunks as workers get free: a neighbour may have taken a core.
// Inlined, because a caller may be compiled for an instruction set that not every machine has.
class Chunks {
  public:
    SMOOTHLOSS_HD Chunks(int64_t count, int64_t size) : count_(count), size_(size), next_(0) {}

    // Calls function(begin, end) until nothing is left.
    template <class Function>
    SMOOTHLOSS_HD void for_each(Function function) {
        for (;;) {
            int64_t begin = next_.fetch_add(size_, std::memory_order_relaxed);
            if (begin >= count_) return;
            function(begin, begin + size_ < count_ ? begin + size_ : count_);
        }
    }

  private:
    const int64_t count_;
    const int64_t size_;
    std::atomic<int64_t> next_;
};

// Calls work(chunks, worker) for each worker, who takes from the chunks until none is left.
template <class Work>
void share_out(int64_t count, int64_t chunk, int workers, Work work) {
    struct Shared {
        Chunks chunks;
        Work& work;
    } shared{{count, chunk}, work};
    auto task = [](void* context, int worker) {
        Shared& mine = *static_cast<Shared*>(context);
        mine.work(mine.chunks, worker);
    };
    run_workers(workers, task, &shared);
}

// The chunk that gives every worker one.
inline int64_t even_share(int64_t count, int workers) {
    return std::max<int64_t>(1, (count + workers - 1) / workers);
}

}  // namespace smoothloss
