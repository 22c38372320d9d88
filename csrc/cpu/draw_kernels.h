// What each instruction set offers for draws: the coins of many positions at once.
#pragma once

#include <cstdint>

namespace smoothloss {

// Positions that may be replaced, field by field. Their number is a multiple of kCoinBlock; those that fill up the last
// block have the threshold 0.
constexpr int64_t kCoinBlock = 64;
struct Coins {
    const uint64_t* position;
    const uint64_t* sentence;
    const int64_t* threshold;
};

struct DrawKernels {
    // Throws the coins begin .. begin + kCoinBlock - 1 of a sample: which of them fall, in order, each with its number
    // (see common/philox.h). Returns how many.
    int64_t (*throw_coins)(const Coins& coins, int64_t begin, uint64_t seed, uint32_t sample, int64_t* fallen,
                           uint64_t* number);
    // The coins of positions 0 .. count - 1 of one sample, see common/philox.h.
    void (*coins)(uint64_t seed, uint32_t sentence, uint32_t sample, uint32_t purpose, int64_t count, int64_t* out);
};

namespace baseline {
extern const DrawKernels draw_kernels;
}
namespace avx2 {
extern const DrawKernels draw_kernels;
}
namespace avx512 {
extern const DrawKernels draw_kernels;
}
namespace avx512bf16 {
extern const DrawKernels draw_kernels;
}

}  // namespace smoothloss
