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
// (values_ptr or 0, rows_ptr, weights_ptr, num_rows, slots); (label_smoothing, entropy, z_loss, logit_scale, softcap);
// (data_ptr, dtype, row_stride); (candidates_ptr, are_int64, num_candidates, batch, length, weights_ptr or 0,
// token_alpha, ignore_index); (indices_ptr or 0, weights_ptr, tail_ptr or 0, num_tokens, num_neighbours)
using LogitsTuple = std::tuple<uintptr_t, int, int64_t, int64_t, int64_t>;
using TargetsTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t>;
using DenseTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t>;
using OptionsTuple = std::tuple<double, double, double, double, double>;
using OutputTuple = std::tuple<uintptr_t, int, int64_t>;
using CandidatesTuple = std::tuple<uintptr_t, bool, int64_t, int64_t, int64_t, uintptr_t, double, int64_t>;
using TableTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t>;

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

inline DenseTargets make_dense_targets(const DenseTuple& t, const Logits& logits) {
    auto [values, rows, weights, num_rows, slots] = t;
    require(slots >= 0 && slots <= INT32_MAX, "dense: got " + std::to_string(slots) + " slots a row");
    require(num_rows >= 0 && num_rows <= INT32_MAX, "dense: got " + std::to_string(num_rows) + " rows");
    bool empty = slots == 0 || num_rows == 0 || logits.rows == 0;
    require(empty || (values != 0 && rows != 0 && weights != 0), "dense: got a null pointer");
    return {pointer(values), static_cast<const int32_t*>(pointer(rows)), pointer(weights), num_rows, empty ? 0 : slots};
}

inline SmoothedTargetArguments make_smoothed_target(const CandidatesTuple& candidates_tuple, const TableTuple& table,
                                                    uintptr_t out_indices, uintptr_t out_weights,
                                                    uintptr_t out_uniform) {
    auto [candidates, are_int64, num_candidates, batch, length, weights, token_alpha, ignore_index] = candidates_tuple;
    auto [table_indices, table_weights, table_tail, num_tokens, num_neighbours] = table;
    require(num_candidates >= 0 && batch >= 0 && length >= 0, "candidates: got a negative size");
    require(num_neighbours >= 0 && num_candidates * (num_neighbours + 1) <= INT32_MAX,
            "candidates: got " + std::to_string(num_candidates) + " x " + std::to_string(num_neighbours) + " entries");
    bool empty = num_candidates * batch * length == 0;
    require(empty || (candidates != 0 && out_indices != 0 && out_weights != 0), "candidates: got a null pointer");
    require(num_neighbours == 0 || num_tokens == 0 || (table_indices != 0 && table_weights != 0),
            "table: got a null pointer");
    return {pointer(candidates),
            are_int64,
            num_candidates,
            batch,
            length,
            static_cast<const float*>(pointer(weights)),
            static_cast<const int32_t*>(pointer(table_indices)),
            static_cast<const float*>(pointer(table_weights)),
            static_cast<const float*>(pointer(table_tail)),
            num_tokens,
            num_neighbours,
            token_alpha,
            ignore_index,
            static_cast<int32_t*>(pointer(out_indices)),
            static_cast<float*>(pointer(out_weights)),
            static_cast<float*>(pointer(out_uniform))};
}

inline MeanArguments make_mean(uintptr_t losses, uintptr_t mass, int type, int64_t rows, uintptr_t loss,
                               uintptr_t scale) {
    DataType accumulator = data_type(type, "losses");
    require(accumulator == DataType::float32 || accumulator == DataType::float64,
            "losses: expected float32 or float64");
    require(rows >= 0 && (rows == 0 || (losses != 0 && mass != 0)) && loss != 0 && scale != 0,
            "losses: got a null pointer");
    return {pointer(losses), pointer(mass), accumulator, rows, pointer(loss), pointer(scale)};
}

inline ScaledCopyArguments make_scaled_copy(uintptr_t values, int type, int64_t count, uintptr_t factor, uintptr_t out,
                                            int out_type) {
    DataType accumulator = data_type(type, "values");
    require(accumulator == DataType::float32 || accumulator == DataType::float64,
            "values: expected float32 or float64");
    require(count >= 0 && (count == 0 || (values != 0 && out != 0)) && factor != 0, "values: got a null pointer");
    require(values % 16 == 0 && out % 16 == 0, "values: got addresses that are no multiples of 16");
    return {pointer(values), accumulator, count, pointer(factor), pointer(out), data_type(out_type, "out")};
}

inline RowOptions make_options(const OptionsTuple& t) {
    auto [label_smoothing, entropy, z_loss, logit_scale, softcap] = t;
    require(logit_scale > 0, "logit_scale: got " + std::to_string(logit_scale) + ", expected a positive number");
    require(softcap >= 0, "softcap: got " + std::to_string(softcap) + ", expected 0 (none) or a positive number");
    return {label_smoothing, entropy, z_loss, logit_scale, softcap};
}

// A given mass is that of the smoothed target, of which the kernel may see a part.
inline void require_unsmoothed(const RowOptions& o) {
    require(o.label_smoothing == 0, "options: got label smoothing together with a mass, expected none");
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
