// Draws of samples on a GPU. Returns an error of the CUDA runtime, or 0; nothing waits for the device.
#pragma once

#include "common/draws.h"

namespace smoothloss {
namespace cuda {

// 64-bit words of scratch memory that the sets of a batch or of its references need.
int64_t scratch_words(const DrawArguments& arguments);

int draw_hamming(const DrawArguments& arguments, int64_t* scratch, int device, void* stream);

int philox_words(const WordArguments& arguments, int device, void* stream);

}  // namespace cuda
}  // namespace smoothloss
