// Philox-4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3; SC 2011) and how its words
// become choices, all in integers, so that every device chooses alike. The definition is smoothloss/sampling/philox.py;
// the counter is written down there too:
//
//   key: the seed's low and high half    counter: (position, sentence, sample, purpose)
#pragma once

#include "common/row_terms.h"

namespace smoothloss {
namespace SMOOTHLOSS_ISA {

constexpr uint32_t kPhiloxFactor0 = 0xD2511F53u, kPhiloxFactor1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKey0 = 0x9E3779B9u, kPhiloxKey1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// What a number is for: the last word of the counter.
enum Purpose : uint32_t {
    kHamming = 0,
    kSimilar = 1,
    kEditCounts = 2,
    kEditReplaced = 3,
    kEditChoice = 4,
    kEditGap = 5,
    kEditInserted = 6
};

struct Words {
    uint32_t x[4];
};

SMOOTHLOSS_HD Words philox(uint64_t seed, uint32_t position, uint32_t sentence, uint32_t sample, uint32_t purpose) {
    uint32_t a = position, b = sentence, c = sample, d = purpose;
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
        uint64_t first = static_cast<uint64_t>(kPhiloxFactor0) * a, second = static_cast<uint64_t>(kPhiloxFactor1) * c;
        a = static_cast<uint32_t>(second >> 32) ^ b ^ key0;
        c = static_cast<uint32_t>(first >> 32) ^ d ^ key1;
        b = static_cast<uint32_t>(second);
        d = static_cast<uint32_t>(first);
        key0 += kPhiloxKey0;
        key1 += kPhiloxKey1;
    }
    return {{a, b, c, d}};
}

// A number of 63 bits from the first two words: a coin falls where it is below a threshold of as many bits.
SMOOTHLOSS_HD int64_t coin(const Words& words) {
    return static_cast<int64_t>(words.x[1] & 0x7fffffffu) << 32 | words.x[0];
}

// A number of 64 bits from the last two words, for a choice among several.
SMOOTHLOSS_HD uint64_t number(const Words& words) {
    return static_cast<uint64_t>(words.x[3]) << 32 | words.x[2];
}

// floor(number * size / 2^64), for 0 <= size < 2^31: one of `size` choices, each as likely as any other to 2^-64.
SMOOTHLOSS_HD int64_t choose(uint64_t number, int64_t size) {
    uint64_t n = static_cast<uint64_t>(size);
    return static_cast<int64_t>(((number >> 32) * n + ((number & 0xffffffffu) * n >> 32)) >> 32);
}

// floor(2^63 count / (count + kept_share)): the share of the coins that replace a token of `count` substitutes, where
// to keep it has the odds kept_share >= 1. A sum, a quotient and a power of two round alike everywhere.
SMOOTHLOSS_HD int64_t coin_threshold(int64_t count, double kept_share) {
    double n = static_cast<double>(count);
    return static_cast<int64_t>(n / (n + kept_share) * 9223372036854775808.0);
}

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
