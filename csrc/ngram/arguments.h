// What a reward kernel is called with: raw pointers and sizes, the same for CPU and CUDA.
#pragma once

#include <cstdint>

// Functions that nvcc compiles for the device, and the host's compiler for the CPU.
#ifdef __CUDACC__
#define SMOOTHLOSS_NGRAM_HD __device__ inline
#else
#define SMOOTHLOSS_NGRAM_HD inline
#endif

namespace smoothloss {
namespace ngram {

constexpr int64_t kMaxLength = int64_t{1} << 30;  // of a sentence: positions, counts and distances fit in 32 bits
constexpr int kUsualOrder = 4;                    // of BLEU: there is room for so many, or for the most there may be
constexpr int kMaxOrder = 8;
constexpr int kCiderOrder = 4;  // CIDEr has the orders 1 to 4

// Candidate c belongs to input c % inputs.
struct Candidates {
    const void* tokens;  // (count, width)
    bool are_int64;
    const int64_t* lengths;  // (count,), or (inputs,) where all candidates of an input are as long; 0 .. width
    bool are_of_inputs;      // the lengths
    int64_t count;
    int64_t width;  // at most kMaxLength
};

// Lengths that are out of range, sentences that do not fit in `tokens` or are longer than kMaxLength, and spans that
// do not fit in `offsets` are refused before a CPU kernel runs. A CUDA kernel clamps the lengths, and takes the others
// as empty.
struct References {
    const int32_t* tokens;   // (num_tokens,) of all sentences, one after the other
    const int64_t* offsets;  // (num_sentences + 1,) where each begins
    const int64_t* spans;    // (inputs, 2) the first sentence of each input, and the one behind its last
    int64_t num_tokens;
    int64_t num_sentences;
    int64_t inputs;
};

enum class Smoothing : int { none = 0, floor = 1, add_k = 2, exp = 3, add_k_all = 4, coco = 5 };

struct BleuArguments {
    Candidates candidates;
    References references;
    int order;
    Smoothing smoothing;
    double k;
    bool effective_order;
    double* scores;       // (count,), or null
    int64_t* statistics;  // (count, 2 + 2 order): candidate and reference length, matches and n-grams by order; or null
};

// An n-gram is a node whose parent is the n-gram without its last token; the root is node 0. So a key is exact for any
// vocabulary, and what is not in the table ends the search for everything that begins with it.
struct Slot {
    uint64_t key;  // parent << 32 | (token + 1); 0: empty
    uint32_t node;
    uint32_t documents;
};

struct Frequencies {
    const Slot* slots;     // (mask + 1,), a power of two, at most two thirds of them filled
    const double* log_df;  // (max_documents + 1,) log(max(1, df))
    uint64_t mask;
    uint32_t max_documents;
    double log_documents;
};

// Of one n-gram of a candidate, at its first position; count 0 elsewhere.
struct CiderTerm {
    double squared_idf;
    int32_t count;
};

struct CiderArguments {
    Candidates candidates;
    References references;
    Frequencies frequencies;
    const double* norms;  // (num_sentences, 4) of the references
    bool is_cider_d;      // clipped counts and a penalty on the difference of lengths
    double sigma;
    CiderTerm* scratch;  // (count, width, 4); null on the CPU
    double* scores;      // (count,)
};

struct CiderNormArguments {
    References references;
    Frequencies frequencies;
    double* norms;  // (num_sentences, 4)
};

// One for every 32 tokens of a candidate.
SMOOTHLOSS_NGRAM_HD int64_t num_carries(int64_t width) {
    return (width + 31) / 32;
}

enum class Alignment : int { rouge_l = 0, hamming = 1, edit_distance = 2 };

struct AlignmentArguments {
    Candidates candidates;
    References references;
    Alignment kind;
    double beta;        // of ROUGE-L
    uint64_t* scratch;  // (count, num_carries(width)); null on the CPU
    double* scores;     // (count,)
};

}  // namespace ngram
}  // namespace smoothloss
