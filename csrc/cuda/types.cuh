// Element types: conversions, packs of 16 bytes, and the way from run-time types to template arguments.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/arguments.h"

namespace smoothloss {
namespace cuda {

template <class Storage>
struct Accumulator {
    using Type = float;
};
template <>
struct Accumulator<double> {
    using Type = double;
};

__device__ __forceinline__ float to_accumulator(float x) {
    return x;
}
__device__ __forceinline__ double to_accumulator(double x) {
    return x;
}
__device__ __forceinline__ float to_accumulator(__half x) {
    return __half2float(x);
}
__device__ __forceinline__ float to_accumulator(__nv_bfloat16 x) {
    return __bfloat162float(x);
}

template <class Storage>
struct Rounded;
template <>
struct Rounded<float> {
    static __device__ __forceinline__ float from(float x) { return x; }
};
template <>
struct Rounded<double> {
    static __device__ __forceinline__ double from(double x) { return x; }
};
template <>
struct Rounded<__half> {
    static __device__ __forceinline__ __half from(float x) { return __float2half_rn(x); }
};
template <>
struct Rounded<__nv_bfloat16> {
    static __device__ __forceinline__ __nv_bfloat16 from(float x) { return __float2bfloat16_rn(x); }
};

// Products that are never contracted into a fused multiply-add: the same logit is the same number wherever it is used.
__device__ __forceinline__ float rounded_product(float a, float b) {
    return __fmul_rn(a, b);
}
__device__ __forceinline__ double rounded_product(double a, double b) {
    return __dmul_rn(a, b);
}

template <class Storage, int COUNT>
struct alignas(sizeof(Storage) * COUNT) Pack {
    Storage values[COUNT];
};

// A parameter of this type takes no part in the deduction of template arguments.
template <class Type>
struct Given {
    using As = Type;
};

// Elements that fit into 16 bytes of the wider of two types.
template <class Storage, class Out>
constexpr int pack_count = 16 / static_cast<int>(sizeof(Storage) > sizeof(Out) ? sizeof(Storage) : sizeof(Out));

// By how many elements a pointer lies beyond a multiple of COUNT elements.
template <int COUNT, class Storage>
__device__ __forceinline__ uint32_t misalignment(const Storage* p) {
    return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p) / sizeof(Storage)) % COUNT;
}

// ---- from run-time types to template arguments

template <class StorageType>
struct TypeTag {
    using Storage = StorageType;
};

template <class Function>
void with_type(DataType type, Function function) {
    switch (type) {
        case DataType::float64:
            return function(TypeTag<double>());
        case DataType::bfloat16:
            return function(TypeTag<__nv_bfloat16>());
        case DataType::float16:
            return function(TypeTag<__half>());
        default:
            return function(TypeTag<float>());
    }
}

// Every type goes to itself, float32 to 16 bits too.
template <class Storage>
struct Outputs {
    template <class Function>
    static bool with_output(DataType in, DataType out, Function function) {
        if (out != in) return false;
        return function(TypeTag<Storage>()), true;
    }
};

template <>
struct Outputs<float> {
    template <class Function>
    static bool with_output(DataType, DataType out, Function function) {
        if (out == DataType::float64) return false;
        if (out == DataType::float32) return function(TypeTag<float>()), true;
        if (out == DataType::float16) return function(TypeTag<__half>()), true;
        return function(TypeTag<__nv_bfloat16>()), true;
    }
};

// Calls function(in, out) with the tags of both types, or returns false where there is no kernel for them.
template <class Function>
bool with_types(DataType in, DataType out, Function function) {
    bool known = false;
    with_type(in, [&](auto in_tag) {
        using Storage = typename decltype(in_tag)::Storage;
        known = Outputs<Storage>::with_output(in, out, [&](auto out_tag) { function(in_tag, out_tag); });
    });
    return known;
}

}  // namespace cuda
}  // namespace smoothloss
