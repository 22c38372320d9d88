// Working memory of the kernels that tell the listed classes of a row from the rest.
#pragma once

#include <vector>

#include "cpu/token_statistics_kernels.h"

namespace smoothloss {

// What the working memory is for.
enum class Pass { statistics, statistics_backward, jensen_shannon, jensen_shannon_backward };

// Working memory of all threads, allocated before any of them starts: nothing throws inside a parallel region.
class StatisticsScratchPool {
  public:
    StatisticsScratchPool(int threads, int64_t classes, int64_t slots, Pass pass)
        : blocks_((classes + kStatisticsBlock - 1) / kStatisticsBlock + 1),
          slots_(slots + kWidestVector),
          gradients_(pass == Pass::statistics ? 0 : slots_),
          classes_(pass == Pass::statistics_backward ? classes : 0),
          exponentials_(pass == Pass::jensen_shannon ? (classes + kWidestVector) * sizeof(double) : 0),
          first_(threads * blocks_),
          index_(threads * slots_),
          z_(threads * slots_),
          gradient_(threads * gradients_),
          slot_of_(threads * classes_, -1),
          center_(threads * blocks_),
          e_(threads * exponentials_) {}

    StatisticsScratch of(int thread) {
        return {first_.data() + thread * blocks_,    index_.data() + thread * slots_,
                z_.data() + thread * slots_,         gradient_.data() + thread * gradients_,
                slot_of_.data() + thread * classes_, center_.data() + thread * blocks_,
                e_.data() + thread * exponentials_};
    }

  private:
    static constexpr int64_t kWidestVector = 16;  // lists and rows are gone through in whole vectors

    int64_t blocks_;
    int64_t slots_;
    int64_t gradients_;
    int64_t classes_;
    int64_t exponentials_;  // bytes
    std::vector<int32_t> first_;
    std::vector<int32_t> index_;
    std::vector<double> z_;
    std::vector<double> gradient_;
    std::vector<int32_t> slot_of_;
    std::vector<double> center_;
    std::vector<unsigned char> e_;
};

}  // namespace smoothloss
