// Draws of samples on the CPU.
#pragma once

#include "common/edits.h"
#include "cpu/draw_kernels.h"

namespace smoothloss {

// Throws std::invalid_argument for a length outside 0 .. width, std::out_of_range for a token without a row.
void draw_hamming(const DrawArguments& arguments, const DrawKernels& kernels, int threads);

// Throws std::invalid_argument for a length outside 0 .. width.
void draw_edit(const EditArguments& arguments, const DrawKernels& kernels, int threads);

}  // namespace smoothloss
