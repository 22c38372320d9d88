// From run-time options and types to template arguments, and from pointers without a type to numbers.
#pragma once

#include "common/arguments.h"
#include "cpu/row_passes.h"

namespace smoothloss {
namespace SMOOTHLOSS_ISA {

template <class T>
SMOOTHLOSS_HD void put(void* results, int64_t n, double value) {
    static_cast<T*>(results)[n] = static_cast<T>(value);
}

template <class T>
SMOOTHLOSS_HD double get(const void* values, int64_t n) {
    return static_cast<double>(static_cast<const T*>(values)[n]);
}

template <bool VALUE>
struct Flag {
    static constexpr bool value = VALUE;
};

template <class Accumulator, class StorageType>
struct InputTag {
    using T = Accumulator;
    using Storage = StorageType;
};

template <class OutStorageType>
struct OutputTag {
    using OutStorage = OutStorageType;
};

template <class Function>
SMOOTHLOSS_HD void with_flag(bool value, Function function) {
    if (value) return function(Flag<true>());
    function(Flag<false>());
}

template <class Function>
SMOOTHLOSS_HD void with_input(DataType type, Function function) {
    if (type == DataType::float64) return function(InputTag<double, double>());
    if (type == DataType::bfloat16) return function(InputTag<float, BFloat16>());
    function(InputTag<float, float>());
}

// float64 goes to float64, the others to float32 or bfloat16: the callers check it.
template <class T>
struct Outputs {
    template <class Function>
    static SMOOTHLOSS_HD void with_output(DataType type, Function function) {
        if (type == DataType::bfloat16) return function(OutputTag<BFloat16>());
        function(OutputTag<float>());
    }
};

template <>
struct Outputs<double> {
    template <class Function>
    static SMOOTHLOSS_HD void with_output(DataType, Function function) {
        function(OutputTag<double>());
    }
};

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
