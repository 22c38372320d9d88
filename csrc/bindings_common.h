// What both binding files share: pointers arrive as integers (data_ptr()), and what can be checked of them is checked.
#pragma once

#include <pybind11/pybind11.h>

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "common/arguments.h"

namespace smoothloss {

namespace py = pybind11;

// A contiguous array: (data_ptr, type code, number of elements); (0, 0, 0) for none. Type codes are those of DataType,
// then int32 and int64.
using ArrayTuple = std::tuple<uintptr_t, int, int64_t>;
constexpr int kInt32 = 4, kInt64 = 5;

// (data_ptr, dtype, rows, classes, row_stride); (indices, slots, weights, uniform, prior, are_labels,
// ignore_index);
// (values, num_rows, rows, slots, weights); the options in their order; (data_ptr, dtype, row_stride);
// (target, samples, num_candidates, batch, length, target_weights, sample_weights, alpha, token_alpha, ignore_index);
// (indices, weights, tail, num_tokens, num_neighbours)
using LogitsTuple = std::tuple<uintptr_t, int, int64_t, int64_t, int64_t>;
using TargetsTuple = std::tuple<ArrayTuple, int64_t, ArrayTuple, ArrayTuple, ArrayTuple, bool, int64_t>;
using DenseTuple = std::tuple<ArrayTuple, int64_t, ArrayTuple, int64_t, ArrayTuple>;
using OptionsTuple = std::array<double, kOptions>;
using OutputTuple = std::tuple<uintptr_t, int, int64_t>;
using CandidatesTuple =
    std::tuple<ArrayTuple, ArrayTuple, int64_t, int64_t, int64_t, ArrayTuple, ArrayTuple, double, double, int64_t>;
using TableTuple = std::tuple<ArrayTuple, ArrayTuple, ArrayTuple, int64_t, int64_t>;

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

inline int accumulator_code(DataType type) {
    return static_cast<int>(accumulates_in_double(type) ? DataType::float64 : DataType::float32);
}

// The address of an array of `count` elements of this type.
inline void* address(const ArrayTuple& array, const char* name, int code, int64_t count) {
    auto [data, type, size] = array;
    require(size == count,
            std::string(name) + ": got " + std::to_string(size) + " elements, expected " + std::to_string(count));
    require(count == 0 || (data != 0 && type == code),
            std::string(name) + ": got the type code " + std::to_string(type) + ", expected " + std::to_string(code));
    return pointer(data);
}

inline bool is_given(const ArrayTuple& array) {
    return std::get<0>(array) != 0;
}

inline void* address_if_given(const ArrayTuple& array, const char* name, int code, int64_t count) {
    return is_given(array) ? address(array, name, code, count) : nullptr;
}

// Indices of either type.
inline void* index_address(const ArrayTuple& array, const char* name, int64_t count) {
    int type = std::get<1>(array) == kInt64 ? kInt64 : kInt32;
    return address(array, name, type, count);
}

inline Targets make_targets(const TargetsTuple& t, const Logits& logits) {
    auto [indices, slots, weights, uniform, prior, are_labels, ignore_index] = t;
    require(slots >= 0 && slots <= INT32_MAX, "indices: got " + std::to_string(slots) + " slots a row");
    require(!are_labels || slots == 1, "indices: got " + std::to_string(slots) + " labels a row, expected 1");
    int type = accumulator_code(logits.type);
    int64_t count = logits.rows * slots;
    return {index_address(indices, "indices", count),
            std::get<1>(indices) == kInt64,
            address_if_given(weights, "weights", type, count),
            address_if_given(uniform, "uniform", type, logits.rows),
            address_if_given(prior, "prior", type, logits.classes),
            slots,
            are_labels,
            ignore_index};
}

// Without weights each row has one slot, whose weight is 1.
inline Targets make_weighted_targets(const TargetsTuple& t, const Logits& logits) {
    Targets targets = make_targets(t, logits);
    require(targets.weights || targets.slots <= 1 || logits.rows == 0, "weights: got none beside several slots a row");
    return targets;
}

inline DenseTargets make_dense_targets(const std::optional<DenseTuple>& t, const Logits& logits) {
    if (!t) return {nullptr, nullptr, nullptr, 0, 0};
    auto [values, num_rows, rows, slots, weights] = *t;
    require(slots >= 0 && slots <= INT32_MAX, "dense: got " + std::to_string(slots) + " slots a row");
    require(num_rows >= 0 && num_rows <= INT32_MAX, "dense: got " + std::to_string(num_rows) + " rows");
    int type = accumulator_code(logits.type);
    bool empty = slots == 0 || num_rows == 0 || logits.rows == 0;
    return {address(values, "dense.values", type, num_rows * logits.classes),
            static_cast<const int32_t*>(address(rows, "dense.rows", kInt32, logits.rows * slots)),
            address(weights, "dense.weights", type, logits.rows * slots), num_rows, empty ? 0 : slots};
}

inline SmoothedTargetArguments make_smoothed_target(const CandidatesTuple& candidates, const TableTuple& table,
                                                    uintptr_t out_indices, uintptr_t out_weights,
                                                    uintptr_t out_uniform) {
    auto [target, samples, count, batch, length, target_weights, sample_weights, alpha, token_alpha, ignore_index] =
        candidates;
    auto [table_indices, table_weights, table_tail, num_tokens, num_neighbours] = table;
    require(count >= 1 && batch >= 0 && length >= 0, "target: got a negative size");
    require(num_neighbours >= 0 && count * (num_neighbours + 1) <= INT32_MAX,
            "target: got " + std::to_string(count) + " x " + std::to_string(num_neighbours) + " entries");
    int64_t positions = batch * length;
    require(positions == 0 || (out_indices != 0 && out_weights != 0), "target: got a null pointer");
    require(count == 1 || positions == 0 || std::get<1>(target) == std::get<1>(samples),
            "samples: got another type than the target's");
    constexpr int float32 = static_cast<int>(DataType::float32), float64 = static_cast<int>(DataType::float64);
    bool are_double = std::get<1>(sample_weights) == float64;
    int64_t entries = num_tokens * num_neighbours;
    return {index_address(target, "target", positions),
            index_address(samples, "samples", (count - 1) * positions),
            std::get<1>(target) == kInt64,
            count,
            batch,
            length,
            static_cast<const float*>(address_if_given(target_weights, "target_weights", float32, batch)),
            address_if_given(sample_weights, "sample_weights", are_double ? float64 : float32, (count - 1) * batch),
            are_double,
            alpha,
            static_cast<const int32_t*>(address(table_indices, "table.indices", kInt32, entries)),
            static_cast<const float*>(address(table_weights, "table.weights", float32, entries)),
            static_cast<const float*>(address_if_given(table_tail, "table.tail", float32, num_tokens)),
            num_tokens,
            num_neighbours,
            token_alpha,
            ignore_index,
            static_cast<int32_t*>(pointer(out_indices)),
            static_cast<float*>(pointer(out_weights)),
            static_cast<float*>(pointer(out_uniform))};
}

inline Reduction make_reduction(int code) {
    require(code >= 0 && code <= 2, "reduction: got " + std::to_string(code) + ", expected 0, 1 or 2");
    return static_cast<Reduction>(code);
}

inline ReduceArguments make_reduce(const ArrayTuple& losses, const ArrayTuple& mass, int reduction, uintptr_t loss,
                                   uintptr_t scale) {
    int type = std::get<1>(losses);
    int64_t rows = std::get<2>(losses);
    require(rows == 0 || type == 0 || type == 1, "losses: expected float32 or float64");
    require(loss != 0 && scale != 0, "loss, scale: got a null pointer");
    return {address(losses, "losses", type, rows),
            address(mass, "mass", type, rows),
            data_type(type, "losses"),
            make_reduction(reduction),
            rows,
            pointer(loss),
            pointer(scale)};
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
    RowOptions options;
    std::memcpy(&options, t.data(), sizeof(options));
    const char* fault = fault_of(options);
    require(!fault, fault ? fault : "");
    return options;
}

inline RowOptions make_transform(double logit_scale, double softcap) {
    RowOptions options{};
    options.logit_scale = logit_scale;
    options.softcap = softcap;
    require(logit_scale > 0, "logit_scale: got " + std::to_string(logit_scale) + ", expected a positive number");
    require(softcap >= 0, "softcap: got " + std::to_string(softcap) + ", expected 0 (none) or a positive number");
    return options;
}

// With logarithms for weights and uniform mass, both given.
inline JensenShannonArguments make_jensen_shannon(const Logits& logits, const TargetsTuple& t, double logit_scale,
                                                  double softcap, double beta, const ArrayTuple& loss,
                                                  const ArrayTuple& saved) {
    Targets targets = make_targets(t, logits);
    require(logits.rows == 0 || (targets.uniform && (targets.weights || targets.slots == 0)),
            "weights, uniform: got none, expected log-probabilities");
    require(beta > 0 && beta < 1, "beta: got " + std::to_string(beta) + ", expected a number between 0 and 1");
    int type = accumulator_code(logits.type);
    return {logits,
            targets,
            make_transform(logit_scale, softcap),
            beta,
            address(loss, "loss", type, logits.rows),
            address(saved, "saved", type, logits.rows * kSavedJensenShannon)};
}

// `grad` takes the place of the loss.
inline JensenShannonBackwardArguments make_jensen_shannon_backward(const Logits& logits, const TargetsTuple& targets,
                                                                   double logit_scale, double softcap, double beta,
                                                                   const ArrayTuple& saved, const ArrayTuple& grad,
                                                                   const Output& out) {
    JensenShannonArguments a = make_jensen_shannon(logits, targets, logit_scale, softcap, beta, grad, saved);
    return {a.logits, a.targets, a.options, a.beta, a.saved, a.loss, out};
}

// log_prob, log_rest, entropy, logsumexp, argmax, what the backward is to know
using StatisticsTuple = std::tuple<ArrayTuple, ArrayTuple, ArrayTuple, ArrayTuple, ArrayTuple, ArrayTuple>;

inline TokenStatisticsArguments make_token_statistics(const Logits& logits, const TargetsTuple& targets,
                                                      double logit_scale, double softcap,
                                                      const StatisticsTuple& results) {
    auto [log_prob, log_rest, entropy, logsumexp, argmax, saved] = results;
    int type = accumulator_code(logits.type);
    TokenStatisticsArguments a{logits,
                               make_targets(targets, logits),
                               make_transform(logit_scale, softcap),
                               nullptr,
                               nullptr,
                               nullptr,
                               nullptr,
                               nullptr,
                               nullptr};
    a.log_prob = address(log_prob, "log_prob", type, logits.rows * a.targets.slots);
    a.log_rest = address(log_rest, "log_rest", type, logits.rows);
    a.entropy = address(entropy, "entropy", type, logits.rows);
    a.logsumexp = address(logsumexp, "logsumexp", type, logits.rows);
    a.argmax = static_cast<int64_t*>(address(argmax, "argmax", kInt64, logits.rows));
    a.saved = address(saved, "saved", type, logits.rows * kSavedStatistics);
    return a;
}

// Of log_prob, log_rest, entropy, logsumexp; none where nothing depends on it.
using StatisticsGradientsTuple = std::tuple<ArrayTuple, ArrayTuple, ArrayTuple, ArrayTuple>;

inline TokenStatisticsBackwardArguments make_token_statistics_backward(const Logits& logits,
                                                                       const TargetsTuple& targets, double logit_scale,
                                                                       double softcap, const ArrayTuple& saved,
                                                                       const StatisticsGradientsTuple& grads,
                                                                       const Output& out) {
    auto [log_prob, log_rest, entropy, logsumexp] = grads;
    int type = accumulator_code(logits.type);
    TokenStatisticsBackwardArguments a{logits,
                                       make_targets(targets, logits),
                                       make_transform(logit_scale, softcap),
                                       nullptr,
                                       nullptr,
                                       nullptr,
                                       nullptr,
                                       nullptr,
                                       out};
    a.saved = address(saved, "saved", type, logits.rows * kSavedStatistics);
    a.grad_log_prob = address_if_given(log_prob, "grads.log_prob", type, logits.rows * a.targets.slots);
    a.grad_log_rest = address_if_given(log_rest, "grads.log_rest", type, logits.rows);
    a.grad_entropy = address_if_given(entropy, "grads.entropy", type, logits.rows);
    a.grad_logsumexp = address_if_given(logsumexp, "grads.logsumexp", type, logits.rows);
    return a;
}

// A given mass is that of the smoothed target, of which the kernel may see a part.
inline void require_unsmoothed(const RowOptions& o) {
    require(o.label_smoothing == 0, "options: got label smoothing together with a mass, expected none");
}

// Where both are the same storage, each element must be read before it is overwritten.
inline Output make_output(const OutputTuple& t, const Logits& logits) {
    auto [data, type, stride] = t;
    Output out{pointer(data), data_type(type, "out"), stride};
    const bool is_empty = logits.rows == 0;  // then both may be null, whatever they are
    require(is_empty || data != 0, "out: got a null pointer");
    require(is_empty || out.data != logits.data ||
                (out.type == logits.type && (stride == logits.stride || logits.rows <= 1)),
            "out: got the storage of the logits with another type or stride");
    require((logits.type == DataType::float64) == (out.type == DataType::float64),
            "out: float64 logits need a float64 out, others must not have one");
    return out;
}

}  // namespace smoothloss
