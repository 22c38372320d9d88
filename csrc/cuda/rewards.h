// Rewards of candidates against references in CUDA C++, one launch each. All pointers are device pointers, those to
// scratch too; nothing is allocated or synchronised, and nothing outside the arrays is read, whatever they hold.
//
// Launchers return a cudaError_t as int, so that callers need no CUDA header.
#pragma once

#include "ngram/arguments.h"

namespace smoothloss {
namespace cuda {

int sentence_bleu(const ngram::BleuArguments& arguments, int device, void* stream);
int cider(const ngram::CiderArguments& arguments, int device, void* stream);
int cider_norms(const ngram::CiderNormArguments& arguments, int device, void* stream);
int alignment(const ngram::AlignmentArguments& arguments, int device, void* stream);

}  // namespace cuda
}  // namespace smoothloss
