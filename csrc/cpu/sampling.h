// Draws of samples on the CPU.
#pragma once

#include "common/draws.h"
#include "cpu/draw_kernels.h"

namespace smoothloss {

// Throws std::invalid_argument for a length outside 0 .. width, std::out_of_range for a token without a row.
void draw_hamming(const DrawArguments& arguments, const DrawKernels& kernels, int threads);

void philox_words(const WordArguments& arguments, int threads);

}  // namespace smoothloss
