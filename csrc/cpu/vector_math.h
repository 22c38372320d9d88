// exp, log and tanh of a vector, to about one unit in the last place.
#pragma once

#include "cpu/vector.h"

namespace smoothloss {
namespace SMOOTHLOSS_ISA {

template <class T>
struct ExpConstants;

// x = k ln 2 + r; ln 2 in two parts, the first with few enough bits that k times it is exact.
// The polynomials P interpolate (e^r - 1 - r) / r^2 at the Chebyshev nodes of |r| <= ln(2) / 2.
template <>
struct ExpConstants<float> {
    static constexpr float lowest = -87.3f;  // below it the result is 0: there are no subnormal results
    static constexpr float tanh_saturation = 10.0f;
    static constexpr float log2_e = 1.44269504f;
    static constexpr float ln2_high = 0.693359375f;
    static constexpr float ln2_low = -2.12194440e-4f;
    // Adding 1.5 * 2^23 rounds to an integer; with the exponent's bias less one, the sum ends in the bits of 2^(k-1).
    static constexpr float round_magic = 12582912.0f + 126;
    static constexpr int mantissa_bits = 23;
    // Relative error of 1 + r + r^2 P(r): 1.0e-8, a sixth of the result's rounding.
    static constexpr int degree = 4;
    static constexpr float p[degree + 1] = {0.5f, 0.16666577025598f, 0.041666554662051f, 0.0083631730745137f,
                                            0.0013926176119936f};
    // For e^r - 1, which r may cancel in: 2.2e-10.
    static constexpr int expm1_degree = 5;
    static constexpr float expm1_p[expm1_degree + 1] = {0.50000000135f,    0.166666666817f,   0.041666464602f,
                                                        0.00833331088958f, 0.00139336858626f, 0.000198910306544f};
};

template <>
struct ExpConstants<double> {
    static constexpr double lowest = -708.3;
    static constexpr double tanh_saturation = 20.0;
    static constexpr double log2_e = 1.4426950408889634074;
    static constexpr double ln2_high = 6.93145751953125e-1;
    static constexpr double ln2_low = 1.42860682030941723212e-6;
    static constexpr double round_magic = 6755399441055744.0 + 1022;  // 1.5 * 2^52
    static constexpr int mantissa_bits = 52;
    // Relative error 2.3e-19.
    static constexpr int degree = 10;
    static constexpr double p[degree + 1] = {0.5,
                                             0.16666666666666671008,
                                             0.041666666666666669767,
                                             0.0083333333333261120526,
                                             0.0013888888888883731828,
                                             0.00019841269874901259234,
                                             0.000024801587325605322782,
                                             2.7557255297969644392e-6,
                                             2.7557273570102139673e-7,
                                             2.5105259538448493419e-8,
                                             2.0914717341716375952e-9};
    static constexpr int expm1_degree = degree;
    static constexpr const double (&expm1_p)[degree + 1] = p;
};

template <class T>
SMOOTHLOSS_HD Vector<T> remainder(Vector<T> x, Vector<T> k) {
    using C = ExpConstants<T>;
    Vector<T> r = x - k * C::ln2_high;
    return r - k * C::ln2_low;
}

#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
// Where the product is not rounded, which no flag must be able to change, one part does: what it lacks is less than a
// tenth of the rounding of x.
template <>
SMOOTHLOSS_HD Vector<float> remainder<float>(Vector<float> x, Vector<float> k) {
    using C = ExpConstants<float>;
    return (Vector<float>)_mm256_fnmadd_ps((__m256)k, _mm256_set1_ps(C::ln2_high + C::ln2_low), (__m256)x);
}
#endif

template <class T>
struct ReducedExponent {
    Vector<T> half_power;  // 2^(k-1)
    Vector<T> r;
};

template <class T>
SMOOTHLOSS_HD ReducedExponent<T> reduce_exponent(Vector<T> x) {
    using C = ExpConstants<T>;
    using Bits = typename Lanes<T>::Bits;
    Vector<T> magic = broadcast<T>(C::round_magic);
    Vector<T> shifted = x * C::log2_e + magic;
    return {(Vector<T>)((Bits)shifted << C::mantissa_bits), remainder<T>(x, shifted - magic)};
}

template <class T>
SMOOTHLOSS_HD Vector<T> clamp_exponent(Vector<T> x) {
    Vector<T> lowest = broadcast<T>(ExpConstants<T>::lowest);
    return x < lowest ? lowest : x;  // a NaN stays one
}

// e^x for x up to about 88 (708), NaN for NaN. It is 2 e^r times 2^(k-1), whose exponent is all zeros where the result
// would be close to subnormal: 0, without a mask.
template <class T>
SMOOTHLOSS_HD Vector<T> vector_exp(Vector<T> x) {
    using C = ExpConstants<T>;
    ReducedExponent<T> e = reduce_exponent<T>(clamp_exponent<T>(x));
    Vector<T> p = broadcast<T>(2 * C::p[C::degree]);
#pragma GCC unroll 16
    for (int i = C::degree - 1; i >= 0; --i) p = p * e.r + 2 * C::p[i];
    p = p * e.r + T(2);
    p = p * e.r + T(2);
    return p * e.half_power;
}

#if defined(__AVX512F__)
// The same in 12 instructions instead of 14: AVX-512 rounds, scales by 2^k and masks in one each.
template <>
SMOOTHLOSS_HD Vector<float> vector_exp<float>(Vector<float> x) {
    using C = ExpConstants<float>;
    __m512 scaled = (__m512)(x * C::log2_e);
    Vector<float> k = (Vector<float>)_mm512_mask_roundscale_ps(scaled, 0xffff, scaled, 0);
    Vector<float> r = remainder<float>(x, k);
    Vector<float> p = broadcast<float>(C::p[C::degree]);
#pragma GCC unroll 16
    for (int i = C::degree - 1; i >= 0; --i) p = p * r + C::p[i];
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    // Not less than: a NaN stays one.
    __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(C::lowest), _CMP_NLT_UQ);
    return (Vector<float>)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)k);
}
#endif

template <class T>
struct LogConstants;

// log(1 + f) = f - f^2 / 2 + f^3 P(f); P interpolates at the Chebyshev nodes of sqrt(1/2) <= 1 + f <= sqrt(2).
template <>
struct LogConstants<float> {
    static constexpr uint32_t root_half = 0x3f3504f3u;
    static constexpr int degree = 7;  // relative error 2.0e-8
    static constexpr float p[degree + 1] = {0.3333333072819f, -0.2500030642257f, 0.2000104509416f, -0.1664128146311f,
                                            0.1421449592394f, -0.1299818376365f, 0.1262231984926f, -0.07902743772421f};
};

template <>
struct LogConstants<double> {
    static constexpr uint64_t root_half = 0x3fe6a09e667f3bcdu;
    static constexpr int degree = 10;  // of the series of 2 artanh(f / (2 + f)): relative error 2.3e-17
};

// log(1 + f), f close to 0.
SMOOTHLOSS_HD Vector<float> log_of_mantissa(Vector<float> f) {
    using C = LogConstants<float>;
    Vector<float> p = broadcast<float>(C::p[C::degree]);
#pragma GCC unroll 16
    for (int i = C::degree - 1; i >= 0; --i) p = p * f + C::p[i];
    Vector<float> square = f * f;
    return f + square * (f * p - 0.5f);
}
SMOOTHLOSS_HD Vector<double> log_of_mantissa(Vector<double> f) {
    Vector<double> s = f / (f + 2.0), square = s * s;
    Vector<double> p = broadcast<double>(1.0 / (2 * LogConstants<double>::degree + 1));
#pragma GCC unroll 16
    for (int i = LogConstants<double>::degree - 1; i >= 0; --i) p = p * square + 1.0 / (2 * i + 1);
    return 2.0 * s * p;
}

// log x for positive, normal, finite x.
template <class T>
SMOOTHLOSS_HD Vector<T> vector_log(Vector<T> x) {
    using C = LogConstants<T>;
    using E = ExpConstants<T>;
    using Bits = typename Lanes<T>::Bits;
    using Mask = typename Lanes<T>::Mask;  // its lanes are signed
    // x = 2^k m with sqrt(1/2) <= m < sqrt(2).
    Mask above = (Mask)((Bits)x - C::root_half);
    Mask exponent = above >> E::mantissa_bits;
    Vector<T> m = (Vector<T>)((Bits)x - ((Bits)exponent << E::mantissa_bits));
    Vector<T> k = __builtin_convertvector(exponent, Vector<T>);
    return k * E::ln2_high + (k * E::ln2_low + log_of_mantissa(m - T(1)));
}

// tanh x = (e^{2|x|} - 1) / (e^{2|x|} + 1) with the sign of x: accurate near 0, where 1 - 2 / (...) is not.
template <class T>
SMOOTHLOSS_HD Vector<T> vector_tanh(Vector<T> x) {
    using C = ExpConstants<T>;
    using Bits = typename Lanes<T>::Bits;
    Bits sign_bit = (Bits)broadcast<T>(T(-0.0));
    Bits sign = (Bits)x & sign_bit;
    Vector<T> a = (Vector<T>)((Bits)x & ~sign_bit);
    Vector<T> limit = broadcast<T>(C::tanh_saturation);
    a = a > limit ? limit : a;
    ReducedExponent<T> e = reduce_exponent<T>(a + a);
    Vector<T> p = broadcast<T>(C::expm1_p[C::expm1_degree]);
#pragma GCC unroll 16
    for (int i = C::expm1_degree - 1; i >= 0; --i) p = p * e.r + C::expm1_p[i];
    Vector<T> power = e.half_power + e.half_power;
    Vector<T> expm1 = power * (e.r * e.r * p + e.r) + (power - T(1));
    Vector<T> t = expm1 / (expm1 + T(2));
    return (Vector<T>)((Bits)t | sign);
}

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
