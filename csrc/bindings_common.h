// What both binding files share: pointers arrive as integers (data_ptr()), and what can be checked of them is checked.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "common/arguments.h"

namespace smoothloss {

namespace py = pybind11;

// (data_ptr, dtype, rows, classes, row_stride); (indices_ptr, weights_ptr, uniform_ptr or 0, slots);
// (label_smoothing, entropy, z_loss, logit_scale, softcap); (data_ptr, dtype, row_stride)
using LogitsTuple = std::tuple<uintptr_t, int, int64_t, int64_t, int64_t>;
using TargetsTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t>;
using OptionsTuple = std::tuple<double, double, double, double, double>;
using OutputTuple = std::tuple<uintptr_t, int, int64_t>;

inline void* pointer(uintptr_t address) {
    return reinterpret_cast<void*>(address);
}

inline void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

inline DataType data_type(int code, const char* name) {
    require(code >= 0 && code <= static_cast<int>(DataType::float16),
            std::string(name) + ": got the type code " + std::to_string(code) + ", expected 0 to 3");
    return static_cast<DataType>(code);
}

inline Logits make_logits(const LogitsTuple& t) {
    auto [data, type, rows, classes, stride] = t;
    require(rows >= 0 && classes >= 1, "logits: got the shape (" + std::to_string(rows) + ", " +
                                           std::to_string(classes) + "), expected (N >= 0, V >= 1)");
    require(classes <= INT32_MAX, "logits: got " + std::to_string(classes) + " classes, expected at most 2^31 - 1");
    require(rows == 0 || data != 0, "logits: got a null pointer");
    return {pointer(data), data_type(type, "logits"), rows, classes, stride};
}

inline Targets make_targets(const TargetsTuple& t, const Logits& logits, bool needs_weights) {
    auto [indices, weights, uniform, slots] = t;
    require(slots >= 0 && slots <= INT32_MAX, "indices: got " + std::to_string(slots) + " slots a row");
    bool empty = slots == 0 || logits.rows == 0;
    require(empty || indices != 0, "indices: got a null pointer");
    require(empty || !needs_weights || weights != 0, "weights: got a null pointer");
    return {static_cast<const int32_t*>(pointer(indices)), pointer(weights), pointer(uniform), slots};
}

inline RowOptions make_options(const OptionsTuple& t) {
    auto [label_smoothing, entropy, z_loss, logit_scale, softcap] = t;
    require(logit_scale > 0, "logit_scale: got " + std::to_string(logit_scale) + ", expected a positive number");
    require(softcap >= 0, "softcap: got " + std::to_string(softcap) + ", expected 0 (none) or a positive number");
    return {label_smoothing, entropy, z_loss, logit_scale, softcap};
}

inline void require_plain(const RowOptions& o) {
    require(o.label_smoothing == 0 && o.entropy == 0 && o.z_loss == 0 && o.logit_scale == 1 && o.softcap == 0,
            "options: only the default options go together with a mass");
}

// Where both are the same storage, each element must be read before it is overwritten.
inline Output make_output(const OutputTuple& t, const Logits& logits) {
    auto [data, type, stride] = t;
    Output out{pointer(data), data_type(type, "out"), stride};
    require(logits.rows == 0 || data != 0, "out: got a null pointer");
    require(out.data != logits.data || (out.type == logits.type && (stride == logits.stride || logits.rows <= 1)),
            "out: got the storage of the logits with another type or stride");
    require((logits.type == DataType::float64) == (out.type == DataType::float64),
            "out: float64 logits need a float64 out, others must not have one");
    return out;
}

}  // namespace smoothloss
