#include "cpu/draw_kernels.h"

#include "common/philox.h"
#include "cpu/vector.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace smoothloss {
namespace SMOOTHLOSS_ISA {
namespace {

// A word a lane of 64 bits, whose upper half is anything: the product of two words is one instruction, and what it
// leaves above its lower half harms nothing.
using Lane = Lanes<double>::Bits;
constexpr int64_t kLanes = Lanes<double>::width;
constexpr uint64_t kLow = 0xffffffffu;

SMOOTHLOSS_HD Lane product(Lane a, Lane b) {
#if defined(__AVX512F__)
    return (Lane)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);  // unmasked it warns
#elif defined(__AVX2__)
    return (Lane)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (Lane)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & kLow) * (b & kLow);
#endif
}

SMOOTHLOSS_HD Lane load(const uint64_t* from) {
    Lane v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
}

struct LaneWords {
    Lane x[4];
};

// philox() of common/philox.h.
SMOOTHLOSS_HD LaneWords philox_lanes(uint64_t seed, Lane a, Lane b, uint32_t sample, uint32_t purpose) {
    Lane c = Lane{} + sample, d = Lane{} + purpose;
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    const Lane factor0 = Lane{} + kPhiloxFactor0, factor1 = Lane{} + kPhiloxFactor1;
    for (int round = 0; round < kPhiloxRounds; ++round) {
        Lane first = product(factor0, a), second = product(factor1, c);
        a = (second >> 32) ^ b ^ (Lane{} + key0);
        c = (first >> 32) ^ d ^ (Lane{} + key1);
        b = second;
        d = first;
        key0 += kPhiloxKey0;
        key1 += kPhiloxKey1;
    }
    return {{a, b, c, d}};
}

// coin() of common/philox.h.
SMOOTHLOSS_HD Lane coin_lanes(const LaneWords& w) {
    return ((w.x[1] << 33) >> 1) | (w.x[0] & kLow);
}

int64_t throw_coins(const Coins& coins, int64_t begin, uint64_t seed, uint32_t sample, int64_t* fallen,
                    uint64_t* number) {
    uint64_t numbers[kCoinBlock];
    uint64_t coin[kCoinBlock];
    for (int64_t i = 0; i < kCoinBlock; i += kLanes) {
        LaneWords w =
            philox_lanes(seed, load(coins.position + begin + i), load(coins.sentence + begin + i), sample, kHamming);
        Lane of_coin = coin_lanes(w);
        Lane of_number = (w.x[3] << 32) | (w.x[2] & kLow);
        __builtin_memcpy(coin + i, &of_coin, sizeof(Lane));
        __builtin_memcpy(numbers + i, &of_number, sizeof(Lane));
    }
    // Without a branch: it would be taken or not at random.
    int64_t count = 0;
    for (int64_t i = 0; i < kCoinBlock; ++i) {
        fallen[count] = begin + i;
        number[count] = numbers[i];
        count += static_cast<int64_t>(coin[i]) < coins.threshold[begin + i];
    }
    return count;
}

void coins(uint64_t seed, uint32_t sentence, uint32_t sample, uint32_t purpose, int64_t count, int64_t* out) {
    uint64_t positions[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) positions[i] = static_cast<uint64_t>(i);
    Lane position = load(positions);
    for (int64_t i = 0; i < count; i += kLanes) {
        Lane of_coin = coin_lanes(philox_lanes(seed, position, Lane{} + sentence, sample, purpose));
        int64_t left = count - i < kLanes ? count - i : kLanes;
        __builtin_memcpy(out + i, &of_coin, static_cast<size_t>(left) * sizeof(int64_t));
        position += static_cast<uint64_t>(kLanes);
    }
}

}  // namespace

const DrawKernels draw_kernels = {throw_coins, coins};

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
