// Vectors of one register of the instruction set this is compiled for, on the vector types of GCC and Clang.
//
// Everything lives in the namespace of the instruction set and is inlined: a function that the linker merged with the
// one of another instruction set would crash on machines without it. For the same reason nothing of std:: is used.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/row_terms.h"

#if defined(__AVX512F__)
#define SMOOTHLOSS_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define SMOOTHLOSS_VECTOR_BYTES 32
#else
#define SMOOTHLOSS_VECTOR_BYTES 16
#endif

namespace smoothloss {
namespace SMOOTHLOSS_ISA {

struct BFloat16 {
    uint16_t bits;
};

template <class T>
struct Lanes;

template <>
struct Lanes<float> {
    typedef float Vector __attribute__((vector_size(SMOOTHLOSS_VECTOR_BYTES)));
    typedef int32_t Mask __attribute__((vector_size(SMOOTHLOSS_VECTOR_BYTES)));
    typedef uint32_t Bits __attribute__((vector_size(SMOOTHLOSS_VECTOR_BYTES)));
    typedef uint16_t HalfBits __attribute__((vector_size(SMOOTHLOSS_VECTOR_BYTES / 2)));
    static constexpr int width = SMOOTHLOSS_VECTOR_BYTES / 4;
};

template <>
struct Lanes<double> {
    typedef double Vector __attribute__((vector_size(SMOOTHLOSS_VECTOR_BYTES)));
    typedef int64_t Mask __attribute__((vector_size(SMOOTHLOSS_VECTOR_BYTES)));
    typedef uint64_t Bits __attribute__((vector_size(SMOOTHLOSS_VECTOR_BYTES)));
    static constexpr int width = SMOOTHLOSS_VECTOR_BYTES / 8;
};

template <class T>
using Vector = typename Lanes<T>::Vector;

template <class T>
SMOOTHLOSS_HD Vector<T> broadcast(T value) {
    return value - Vector<T>{};  // not 0 + value, which loses the sign of -0
}

// Keeps the compiler from contracting the product behind v and what follows into one rounding (a fused multiply-add):
// the same logit must be the same number wherever it is used.
template <class T>
SMOOTHLOSS_HD Vector<T> as_rounded(Vector<T> v) {
#if defined(__x86_64__) && defined(__AVX512F__)
    __asm__("" : "+v"(v));
#elif defined(__x86_64__)
    __asm__("" : "+x"(v));
#elif defined(__aarch64__)
    __asm__("" : "+w"(v));
#else
    __asm__("" : "+m"(v));
#endif
    return v;
}

template <class T>
SMOOTHLOSS_HD Vector<T> larger(Vector<T> a, Vector<T> b) {
    return a > b ? a : b;  // of a NaN in a: b
}

// Sum of the lanes in double: a float sum then errs by what its few terms per lane do.
template <class T>
SMOOTHLOSS_HD double sum_of_lanes(Vector<T> v) {
    double sum = 0;
    for (int i = 0; i < Lanes<T>::width; ++i) sum += static_cast<double>(v[i]);
    return sum;
}

template <class T>
SMOOTHLOSS_HD T max_of_lanes(Vector<T> v) {
    T max = v[0];
    for (int i = 1; i < Lanes<T>::width; ++i) max = v[i] > max ? v[i] : max;
    return max;
}

// GCC's own conversions take five instructions and three in AVX2, four to widen in AVX-512.
#if defined(__AVX512F__)
SMOOTHLOSS_HD Lanes<float>::Bits extend(Lanes<float>::HalfBits half) {
    return (Lanes<float>::Bits)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)half);  // unmasked it warns
}
SMOOTHLOSS_HD Lanes<float>::HalfBits truncate(Lanes<float>::Bits bits) {
    return __builtin_convertvector(bits, Lanes<float>::HalfBits);
}
#elif defined(__AVX2__)
SMOOTHLOSS_HD Lanes<float>::Bits extend(Lanes<float>::HalfBits half) {
    return (Lanes<float>::Bits)_mm256_cvtepu16_epi32((__m128i)half);
}
SMOOTHLOSS_HD Lanes<float>::HalfBits truncate(Lanes<float>::Bits bits) {
    __m256i all = (__m256i)bits;
    return (Lanes<float>::HalfBits)_mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}
#else
SMOOTHLOSS_HD Lanes<float>::Bits extend(Lanes<float>::HalfBits half) {
    return __builtin_convertvector(half, Lanes<float>::Bits);
}
SMOOTHLOSS_HD Lanes<float>::HalfBits truncate(Lanes<float>::Bits bits) {
    return __builtin_convertvector(bits, Lanes<float>::HalfBits);
}
#endif

SMOOTHLOSS_HD Vector<float> widen(Lanes<float>::HalfBits half) {
    return (Vector<float>)(extend(half) << 16);
}

#if defined(__AVX512BF16__)
SMOOTHLOSS_HD Lanes<float>::HalfBits narrow(Vector<float> v) {
    return (Lanes<float>::HalfBits)_mm512_cvtneps_pbh((__m512)v);  // instead of eight instructions
}
#else
SMOOTHLOSS_HD Lanes<float>::Bits narrow_in_place(Vector<float> v) {
    Lanes<float>::Bits bits = (Lanes<float>::Bits)v;
    Lanes<float>::Bits rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
    rounded |= (Lanes<float>::Bits)(v != v);                            // a NaN stays one
    return rounded >> 16;
}

SMOOTHLOSS_HD Lanes<float>::HalfBits narrow(Vector<float> v) {
    return truncate(narrow_in_place(v));
}
#endif

template <class T>
SMOOTHLOSS_HD Vector<T> load(const T* p) {
    Vector<T> v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
}

SMOOTHLOSS_HD Vector<float> load(const BFloat16* p) {
    Lanes<float>::HalfBits half;
    __builtin_memcpy(&half, p, sizeof(half));
    return widen(half);
}

template <class T>
SMOOTHLOSS_HD void store(T* p, Vector<T> v) {
    __builtin_memcpy(p, &v, sizeof(v));
}

SMOOTHLOSS_HD void store(BFloat16* p, Vector<float> v) {
    Lanes<float>::HalfBits half = narrow(v);
    __builtin_memcpy(p, &half, sizeof(half));
}

// Two vectors that follow one another.
template <class T, class Storage>
SMOOTHLOSS_HD void store_two(Storage* p, Vector<T> first, Vector<T> second) {
    store(p, first);
    store(p + Lanes<T>::width, second);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
template <>
SMOOTHLOSS_HD void store_two<float, BFloat16>(BFloat16* p, Vector<float> first, Vector<float> second) {
    __m256i by_halves = _mm256_packus_epi32((__m256i)narrow_in_place(first), (__m256i)narrow_in_place(second));
    __m256i in_order = _mm256_permute4x64_epi64(by_halves, _MM_SHUFFLE(3, 1, 2, 0));
    __builtin_memcpy(p, &in_order, sizeof(in_order));
}
#endif

// The first `count` lanes from or to memory; the other lanes are read as 0.
template <class T, class Storage>
SMOOTHLOSS_HD Vector<T> load_some(const Storage* p, int count) {
    Storage buffer[Lanes<T>::width] = {};
    for (int i = 0; i < count; ++i) buffer[i] = p[i];
    return load(buffer);
}

template <class T, class Storage>
SMOOTHLOSS_HD void store_some(Storage* p, Vector<T> v, int count) {
    Storage buffer[Lanes<T>::width];
    store(buffer, v);
    for (int i = 0; i < count; ++i) p[i] = buffer[i];
}

#if defined(__AVX512F__)
template <>
SMOOTHLOSS_HD Vector<float> load_some<float, float>(const float* p, int count) {
    return (Vector<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
}

template <>
SMOOTHLOSS_HD void store_some<float, float>(float* p, Vector<float> v, int count) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
}
#endif

// All ones in the lanes below `count`.
template <class T>
SMOOTHLOSS_HD typename Lanes<T>::Mask lanes_below(int count) {
    typename Lanes<T>::Mask index{};
    for (int i = 0; i < Lanes<T>::width; ++i) index[i] = i;
    return index < count;
}

SMOOTHLOSS_HD double read(const float* p) {
    return *p;
}
SMOOTHLOSS_HD double read(const double* p) {
    return *p;
}
SMOOTHLOSS_HD double read(const BFloat16* p) {
    uint32_t bits = static_cast<uint32_t>(p->bits) << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
}

SMOOTHLOSS_HD void write(float* p, double value) {
    *p = static_cast<float>(value);
}
SMOOTHLOSS_HD void write(double* p, double value) {
    *p = value;
}
SMOOTHLOSS_HD void write(BFloat16* p, double value) {
    float single = static_cast<float>(value);
    uint32_t bits;
    __builtin_memcpy(&bits, &single, sizeof(bits));
    uint32_t rounded = single == single ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : (bits >> 16) | 0x40u;
    p->bits = static_cast<uint16_t>(rounded);
}

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
