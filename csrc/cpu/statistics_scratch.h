// Working memory of the kernels that tell the listed classes of a row from the rest.
#pragma once

#include <vector>

#include "cpu/token_statistics_kernels.h"

namespace smoothloss {

// Working memory of all threads, allocated before any of them starts: nothing throws inside a parallel region.
class StatisticsScratchPool {
  public:
    StatisticsScratchPool(int threads, int64_t classes, int64_t slots, bool is_backward)
        : blocks_((classes + kStatisticsBlock - 1) / kStatisticsBlock + 1),
          slots_(slots + kWidestVector),
          classes_(is_backward ? classes : 0),
          first_(threads * blocks_),
          index_(threads * slots_),
          z_(threads * slots_),
          gradient_(is_backward ? threads * slots_ : 0),
          slot_of_(threads * classes_, -1) {}

    StatisticsScratch of(int thread) {
        return {first_.data() + thread * blocks_, index_.data() + thread * slots_, z_.data() + thread * slots_,
                gradient_.data() + (gradient_.empty() ? 0 : thread * slots_), slot_of_.data() + thread * classes_};
    }

  private:
    static constexpr int64_t kWidestVector = 16;  // the lists are read in whole vectors

    int64_t blocks_;
    int64_t slots_;
    int64_t classes_;
    std::vector<int32_t> first_;
    std::vector<int32_t> index_;
    std::vector<double> z_;
    std::vector<double> gradient_;
    std::vector<int32_t> slot_of_;
};

}  // namespace smoothloss
