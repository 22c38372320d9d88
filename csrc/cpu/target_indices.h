// The indices of a target as the CPU kernels want them: int32, negative in every empty slot, all in range.
#pragma once

#include <cstdint>
#include <memory>

#include "common/arguments.h"

namespace smoothloss {

class TargetIndices {
  public:
    TargetIndices(const Targets& targets, int64_t rows, int64_t classes);

    // The place of the first index out of range, -1 where there is none. Nothing may run on these targets if there is.
    int64_t first_wrong() const { return first_wrong_; }

    // The same targets with the indices brought into form.
    Targets targets() const;

  private:
    Targets given_;
    std::unique_ptr<int32_t[]> narrow_;  // null where the indices have the form already
    int64_t first_wrong_ = -1;
};

}  // namespace smoothloss
