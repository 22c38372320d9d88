// One warp per candidate (per reference, for norms): csrc/ngram scores it, the lanes share its positions.
#include "cuda/rewards.h"

#include "cuda/launch.cuh"
#include "ngram/alignment.h"
#include "ngram/cider.h"

namespace smoothloss {
namespace cuda {
namespace {

// A block. Few, so that the candidates of a batch spread over the multiprocessors: what they wait for is latency.
constexpr unsigned kWarps = 4;

struct Warp {
    static constexpr int kSize = 32;

    struct Block {
        int32_t own;
        bool exists;

        template <class Token>
        __device__ __forceinline__ uint32_t equal_to(Token token) const {
            return __ballot_sync(kAllLanes, exists && own == token);
        }
    };

    __device__ __forceinline__ int rank() const { return lane_id(); }

    template <class T>
    __device__ __forceinline__ T sum(T value) const {
        return warp_sum(value);
    }

    template <class T>
    __device__ __forceinline__ T read(const T* address) const {
        return __shfl_sync(kAllLanes, rank() == 0 ? *address : T(), 0);
    }

    __device__ __forceinline__ Block block(const ngram::Sentence<int32_t>& sentence, int first) const {
        bool exists = rank() < sentence.length - first;
        return {exists ? sentence.tokens[first + rank()] : 0, exists};
    }
};

__device__ __forceinline__ int64_t number_of_warp() {
    return static_cast<int64_t>(blockIdx.x) * kWarps + warp_id();
}

// In 32 bits, to which the launcher holds the count: a division in 64 is a call.
__device__ __forceinline__ int64_t input_of(int64_t candidate, const ngram::References& references) {
    return static_cast<uint32_t>(candidate) % static_cast<uint32_t>(references.inputs);
}

template <class Token, int ORDER>
__global__ void __launch_bounds__(32 * kWarps, 4) sentence_bleu_kernel(ngram::BleuArguments a) {
    int64_t number = number_of_warp();
    if (number >= a.candidates.count) return;
    int64_t input = input_of(number, a.references);
    auto candidate = ngram::candidate_sentence<Token>(a.candidates, number, input);
    ngram::score_bleu<ORDER>(Warp(), a, candidate, number, input);
}

template <class Token>
__global__ void __launch_bounds__(32 * kWarps, 4) cider_kernel(ngram::CiderArguments a) {
    int64_t number = number_of_warp();
    if (number >= a.candidates.count) return;
    int64_t input = input_of(number, a.references);
    auto candidate = ngram::candidate_sentence<Token>(a.candidates, number, input);
    ngram::CiderTerm* terms = a.scratch + number * a.candidates.width * ngram::kCiderOrder;
    ngram::score_cider(Warp(), a, candidate, number, input, terms);
}

__global__ void __launch_bounds__(32 * kWarps, 4) cider_norms_kernel(ngram::CiderNormArguments a) {
    int64_t number = number_of_warp();
    if (number < a.references.num_sentences) ngram::write_norms(Warp(), a, number);
}

template <class Token>
__global__ void __launch_bounds__(32 * kWarps, 4) alignment_kernel(ngram::AlignmentArguments a) {
    int64_t number = number_of_warp();
    if (number >= a.candidates.count) return;
    int64_t input = input_of(number, a.references);
    auto candidate = ngram::candidate_sentence<Token>(a.candidates, number, input);
    uint64_t* carries = a.scratch + number * ngram::num_carries(a.candidates.width);
    ngram::score_alignment(Warp(), a, candidate, number, input, carries);
}

template <class Arguments>
int launch_warps(void (*kernel)(Arguments), const Arguments& a, int64_t count, int device, void* stream) {
    int error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    if (count > INT32_MAX) return cudaErrorInvalidValue;
    return launch(kernel, a, {(count + kWarps - 1) / kWarps, 32 * kWarps, 0, 0}, stream);
}

// The kernel for the candidates' type.
template <class Arguments>
int launch_candidates(void (*wide)(Arguments), void (*narrow)(Arguments), const Arguments& a, int device,
                      void* stream) {
    return launch_warps(a.candidates.are_int64 ? wide : narrow, a, a.candidates.count, device, stream);
}

template <int ORDER>
int launch_bleu(const ngram::BleuArguments& a, int device, void* stream) {
    return launch_candidates(sentence_bleu_kernel<int64_t, ORDER>, sentence_bleu_kernel<int32_t, ORDER>, a, device,
                             stream);
}

}  // namespace

int sentence_bleu(const ngram::BleuArguments& a, int device, void* stream) {
    return a.order <= ngram::kUsualOrder ? launch_bleu<ngram::kUsualOrder>(a, device, stream)
                                         : launch_bleu<ngram::kMaxOrder>(a, device, stream);
}

int cider(const ngram::CiderArguments& a, int device, void* stream) {
    return launch_candidates(cider_kernel<int64_t>, cider_kernel<int32_t>, a, device, stream);
}

int cider_norms(const ngram::CiderNormArguments& a, int device, void* stream) {
    return launch_warps(cider_norms_kernel, a, a.references.num_sentences, device, stream);
}

int alignment(const ngram::AlignmentArguments& a, int device, void* stream) {
    return launch_candidates(alignment_kernel<int64_t>, alignment_kernel<int32_t>, a, device, stream);
}

}  // namespace cuda
}  // namespace smoothloss
