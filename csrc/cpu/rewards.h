// Rewards of candidates against references on the CPU.
#pragma once

#include "ngram/arguments.h"

namespace smoothloss {

void sentence_bleu(const ngram::BleuArguments& arguments, int threads);
void cider(const ngram::CiderArguments& arguments, int threads);
void cider_norms(const ngram::CiderNormArguments& arguments, int threads);
void alignment(const ngram::AlignmentArguments& arguments, int threads);

}  // namespace smoothloss
