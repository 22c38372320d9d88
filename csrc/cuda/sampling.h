// Draws of samples on a GPU. Returns an error of the CUDA runtime, or 0; nothing waits for the device.
#pragma once

#include "common/edits.h"

namespace smoothloss {
namespace cuda {

// 64-bit words of scratch memory that the sets of a batch or of its references need.
int64_t scratch_words(const DrawArguments& arguments);

int draw_hamming(const DrawArguments& arguments, int64_t* scratch, int device, void* stream);

// And those that a draw by edit distance needs: for the sets, the sentences and the samples.
int64_t scratch_words(const EditArguments& arguments);

int draw_edit(const EditArguments& arguments, int64_t* scratch, int device, void* stream);

}  // namespace cuda
}  // namespace smoothloss
