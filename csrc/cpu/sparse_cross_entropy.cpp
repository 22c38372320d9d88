#include "cpu/sparse_cross_entropy.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/isa.h"
#include "cpu/row_chunks.h"

namespace smoothloss {
namespace {

// Working memory of all threads, allocated before any of them starts: nothing throws inside a parallel region.
class ScratchPool {
  public:
    ScratchPool(int threads, int64_t classes, int64_t slots)
        : classes_(classes),
          slots_(slots + kWidestVector),
          slot_of_(threads * classes, -1),
          index_(threads * slots_),
          weight_(threads * slots_),
          logit_(threads * slots_) {}

    Scratch of(int thread) {
        return {slot_of_.data() + thread * classes_, index_.data() + thread * slots_, weight_.data() + thread * slots_,
                logit_.data() + thread * slots_};
    }

  private:
    static constexpr int64_t kWidestVector = 16;  // the lists are read in whole vectors

    int64_t classes_;
    int64_t slots_;
    std::vector<int32_t> slot_of_;
    std::vector<int32_t> index_;
    std::vector<double> weight_;
    std::vector<double> logit_;
};

}  // namespace

void sparse_cross_entropy_forward(const ForwardArguments& a, const Execution& execution) {
    const RowKernels& kernels = row_kernels_for(execution.isa);
    for_row_chunks(a.logits.rows, useful_threads(a.logits, execution.threads),
                   [&](int64_t begin, int64_t end, int) { kernels.forward(a, begin, end); });
}

void sparse_cross_entropy_backward(const BackwardArguments& a, const Execution& execution) {
    const RowKernels& kernels = row_kernels_for(execution.isa);
    int threads = useful_threads(a.logits, execution.threads);
    ScratchPool scratch(threads, a.logits.classes, a.targets.slots);
    advise_huge_pages(a.out, a.logits);
    for_row_chunks(a.logits.rows, threads, [&](int64_t begin, int64_t end, int thread) {
        kernels.backward(a, begin, end, scratch.of(thread));
    });
}

void sparse_cross_entropy_forward_backward(const ForwardBackwardArguments& a, const Execution& execution) {
    const RowKernels& kernels = row_kernels_for(execution.isa);
    int threads = useful_threads(a.logits, execution.threads);
    ScratchPool scratch(threads, a.logits.classes, a.targets.slots);
    advise_huge_pages(a.out, a.logits);
    for_row_chunks(a.logits.rows, threads, [&](int64_t begin, int64_t end, int thread) {
        kernels.forward_backward(a, begin, end, scratch.of(thread));
    });
}

namespace {

template <class T>
void reduce_as(const ReduceArguments& a) {
    double sum = 0;
    int64_t count = 0;
    for (int64_t n = 0; n < a.rows; ++n) {
        sum += static_cast<double>(static_cast<const T*>(a.losses)[n]);
        count += static_cast<const T*>(a.mass)[n] != 0;
    }
    bool is_mean = a.reduction == Reduction::mean;
    *static_cast<T*>(a.loss) = static_cast<T>(is_mean ? sum / static_cast<double>(count) : sum);
    double divisor = is_mean ? static_cast<double>(std::max<int64_t>(count, 1)) : 1.0;
    *static_cast<T*>(a.scale) = static_cast<T>(1.0 / divisor);
}

template <class T>
int64_t count_zeros_of(const void* values, int64_t rows) {
    const T* begin = static_cast<const T*>(values);
    return std::count(begin, begin + rows, T(0));
}

}  // namespace

int64_t count_zeros(DataType type, const void* values, int64_t rows) {
    return accumulates_in_double(type) ? count_zeros_of<double>(values, rows) : count_zeros_of<float>(values, rows);
}

void reduce(const ReduceArguments& a) {
    if (accumulates_in_double(a.type)) return reduce_as<double>(a);
    reduce_as<float>(a);
}

}  // namespace smoothloss
