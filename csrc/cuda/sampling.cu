// A draw in one launch. One warp a sample of a sentence: its lanes share the positions. Where the pool is the set of
// the tokens of a batch or of references, each block builds what it needs of it in its shared memory, again and again:
// that takes less time than another launch. A set that is too large for that is built by a launch before.
#include "cuda/sampling.h"

#include <algorithm>

#include "cuda/token_sets.cuh"

namespace smoothloss {
namespace cuda {
namespace {

constexpr unsigned kDrawWarps = 4;

// The substitutes of a position: how many there are, and where they stand.
struct Choices {
    int64_t count;
    int32_t rank;
    const int64_t* tokens;
};

__device__ __forceinline__ Choices choices_of(const SetArguments& a, int64_t sentence, int64_t at, int64_t token) {
    const DrawArguments& d = a.draw;
    if (is_excluded(d, token)) return {0, -1, nullptr};
    if (d.pool == PoolKind::similar) {
        // On the CPU a token out of the table is an error. Here it has no substitutes.
        return {token < d.table.num_tokens ? d.table.num_substitutes[token] : 0, -1, nullptr};
    }
    if (d.pool == PoolKind::vocabulary) {
        int32_t rank = rank_in_vocabulary(d, token);
        return {d.table.set_size - (rank >= 0), rank, d.table.by_rank};
    }
    int64_t set = d.pool == PoolKind::batch ? 0 : sentence;
    int32_t rank = a.target_ranks[at];
    return {a.sizes[set] - (rank >= 0), rank, a.tokens + set * a.elements};
}

struct Drawn {
    int64_t token;
    double log_ratio;
};

__device__ __forceinline__ Drawn draw_one(const DrawArguments& d, const Choices& choices, int64_t token,
                                          const Words& words, uint64_t seed, uint32_t t, uint32_t b, uint32_t l) {
    if (d.pool != PoolKind::similar) {
        return {choices.tokens[substitute_place(number(words), choices.count, choices.rank)], 0};
    }
    const Segment* slot = similar_slot(d.table, token, number(words));
    Words second = philox(seed, t, b, l, kSimilar);
    const Segment* segment = similar_segment(slot, second);
    return {similar_token(d.table, *segment, second), segment->log_ratio};
}

// `choices_of(at, token)` are those of the ground truth's token there.
template <class ChoicesOf>
__device__ __forceinline__ void draw_sample(const DrawArguments& d, int64_t sample, int64_t sentence,
                                            ChoicesOf choices_of) {
    uint64_t seed = static_cast<uint64_t>(*d.seed);
    int64_t length = length_of(d, sentence), sequence = sample * d.batch + sentence;
    int32_t distance = 0;
    double ratio = 0, log_normalizer = 0;
    for (int64_t t = lane_id(); t < d.width; t += 32) {
        int64_t at = sentence * d.width + t, token = read_token(d.target, at), drawn = token;
        Choices choices = t < length ? choices_of(at, token) : Choices{0, -1, nullptr};
        int64_t threshold = coin_threshold(choices.count, d.kept_share);
        uint32_t of_t = static_cast<uint32_t>(t), of_b = static_cast<uint32_t>(sentence),
                 of_l = static_cast<uint32_t>(sample);
        Words words = philox(seed, of_t, of_b, of_l, kHamming);
        if (coin(words) < threshold) {
            Drawn result = draw_one(d, choices, token, words, seed, of_t, of_b, of_l);
            drawn = result.token;
            ratio += result.log_ratio;
            ++distance;
        }
        log_normalizer += log_normalizer_of(d, choices.count);
        write_token(d.tokens, sequence * d.width + t, drawn);
    }
    distance = warp_sum(distance);
    ratio = warp_sum(ratio);
    log_normalizer = warp_sum(log_normalizer);
    if (lane_id() != 0) return;
    d.distance[sequence] = distance;
    d.log_prob[sequence] = log_prob_of(d, distance, ratio, log_normalizer);
}

__global__ void __launch_bounds__(32 * kDrawWarps) draw_hamming_kernel(SetArguments a) {
    const DrawArguments& d = a.draw;
    int64_t sequence = static_cast<int64_t>(blockIdx.x) * kDrawWarps + warp_id();
    if (sequence >= d.samples * d.batch) return;
    int64_t sample = sequence / d.batch, sentence = sequence - sample * d.batch;
    draw_sample(d, sample, sentence, [&](int64_t at, int64_t token) { return choices_of(a, sentence, at, token); });
}

// Draws from a set that each block builds in its shared memory: that of the batch, for the samples of any sentences, or
// that of a sentence, for all of its samples.
struct OwnSetArguments {
    SetArguments sets;
    int64_t blocks;
};

constexpr unsigned kOwnSetThreads = 512;
constexpr int64_t kOwnSetBlocks = 128;  // of a batch, at most: each builds the same set

__global__ void __launch_bounds__(kOwnSetThreads, 1) draw_from_own_set_kernel(OwnSetArguments a) {
    const DrawArguments& d = a.sets.draw;
    bool of_batch = d.pool == PoolKind::batch;
    int64_t block = static_cast<int64_t>(blockIdx.x), warps = blockDim.x / 32;
    int64_t* tokens = shared_memory<int64_t>();
    int32_t* slots = reinterpret_cast<int32_t*>(tokens + a.sets.elements);
    SetMemory memory{a.sets.capacity, tokens, slots, slots + a.sets.capacity};
    SetOfBlock set{d, of_batch ? 0 : block, a.sets.elements, memory};
    int64_t size = build_set(set);
    auto choices_in_set = [&](int64_t, int64_t token) {
        if (is_excluded(d, token)) return Choices{0, -1, nullptr};
        int32_t rank = set.rank_of(token);
        return Choices{size - (rank >= 0), rank, tokens};
    };
    int64_t first = of_batch ? block * warps + warp_id() : warp_id() * d.batch + block;
    int64_t step = of_batch ? a.blocks * warps : warps * d.batch;
    for (int64_t sequence = first; sequence < d.samples * d.batch; sequence += step) {
        int64_t sample = sequence / d.batch;
        draw_sample(d, sample, sequence - sample * d.batch, choices_in_set);
    }
}

struct EditSetArguments {
    SetArguments sets;
    EditArguments edit;
    int64_t* sentences;  // (batch, edit_sentence_words())
    int64_t* samples;    // (batch, edit_sample_words(), samples)
};

__device__ __forceinline__ EditSentence edit_sentence(const EditSetArguments& a, int64_t number) {
    const DrawArguments& d = a.edit.draw;
    int64_t* memory = a.sentences + number * edit_sentence_words(d.width, a.edit.max_insertions);
    bool of_vocabulary = d.pool == PoolKind::vocabulary;
    int64_t set = d.pool == PoolKind::batch ? 0 : number;
    return {number,
            length_of(d, number),
            of_vocabulary ? d.table.set_size : a.sets.sizes[set],
            0,
            of_vocabulary ? d.table.by_rank : a.sets.tokens + set * a.sets.elements,
            memory,
            memory + d.width,
            memory + 2 * d.width,
            reinterpret_cast<double*>(memory + 3 * d.width),
            memory + 4 * d.width,
            0};
}

// A light block, so that a thread may hold what a sample needs in registers.
constexpr int kEditThreads = 64;

// One block a sentence, one thread a sample.
__global__ void __launch_bounds__(kEditThreads, 1) draw_edit_kernel(EditSetArguments a) {
    __shared__ EditSentence sentence;
    const DrawArguments& d = a.edit.draw;
    int64_t number = static_cast<int64_t>(blockIdx.x), own = threadIdx.x, step = blockDim.x;
    if (own == 0) sentence = edit_sentence(a, number);
    __syncthreads();
    for (int64_t t = own; t < sentence.length; t += step) {
        int64_t at = number * d.width + t, token = read_token(d.target, at);
        int64_t rank = d.pool == PoolKind::vocabulary ? rank_in_vocabulary(d, token) : a.sets.target_ranks[at];
        set_token(a.edit, sentence, t, token, rank);
    }
    __syncthreads();
    if (own == 0) {
        sentence.free = count_free(sentence);
        set_prior(a.edit, sentence);
    }
    __syncthreads();
    int64_t words = edit_sample_words(d.width, a.edit.max_insertions);
    for (int64_t l = own; l < d.samples; l += step) {
        int64_t* memory = a.samples + number * words * d.samples + l;
        EditScratch scratch = edit_scratch(memory, d.samples, d.width, a.edit.max_insertions);
        EditDraw draw{a.edit, sentence, scratch, static_cast<uint64_t>(*d.seed), static_cast<uint32_t>(l)};
        int64_t pair = draw.draw_pair();
        if (draw.needs_keys(pair)) draw.draw_keys();
        draw.run(pair);
    }
}

// Whether a block has so much shared memory; beyond what every block may have, the kernel is allowed to.
template <class Kernel>
bool fits_into_block(Kernel kernel, int64_t bytes, int device) {
    constexpr int64_t reserved = 2048;  // by the system, and for what the kernel has beside the set
    if (bytes + reserved <= 48 * 1024) return true;
    int most = 0;
    if (cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return false;
    if (bytes + reserved > most) return false;
    return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(bytes)) == cudaSuccess;
}

int draw_from_own_sets(const SetArguments& a, int64_t bytes, void* stream) {
    const DrawArguments& d = a.draw;
    unsigned threads = threads_for(a.elements, kOwnSetThreads);
    int64_t warps = threads / 32, blocks = d.batch;
    if (d.pool == PoolKind::batch) blocks = std::min((d.samples * d.batch + warps - 1) / warps, kOwnSetBlocks);
    if (d.samples == 0) blocks = 0;
    return launch(draw_from_own_set_kernel, OwnSetArguments{a, blocks},
                  {blocks, threads, static_cast<size_t>(bytes), 0}, stream);
}

}  // namespace

int64_t scratch_words(const DrawArguments& a) {
    if (!has_sets(a)) return 0;
    SetArguments s = set_arguments(a, nullptr);
    return s.sets * (s.elements + 1) + (s.sets * (s.capacity + s.elements) + a.batch * a.width + 1) / 2;
}

int64_t scratch_words(const EditArguments& a) {
    const DrawArguments& d = a.draw;
    int64_t sentence = edit_sentence_words(d.width, a.max_insertions);
    return scratch_words(d) + d.batch * (sentence + d.samples * edit_sample_words(d.width, a.max_insertions));
}

int draw_hamming(const DrawArguments& a, int64_t* scratch, int device, void* stream) {
    int error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    SetArguments sets = set_arguments(a, scratch);
    int64_t bytes = sets.elements * 12 + sets.capacity * 4;
    if (has_sets(a) && fits_into_block(draw_from_own_set_kernel, bytes, device)) {
        return draw_from_own_sets(sets, bytes, stream);
    }
    error = build_sets(sets, stream);
    if (error != cudaSuccess) return error;
    int64_t blocks = (a.samples * a.batch + kDrawWarps - 1) / kDrawWarps;
    return launch(draw_hamming_kernel, sets, {blocks, 32 * kDrawWarps, 0, 0}, stream);
}

int draw_edit(const EditArguments& a, int64_t* scratch, int device, void* stream) {
    int error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    const DrawArguments& d = a.draw;
    int64_t* sentences = scratch + scratch_words(d);
    int64_t* samples = sentences + d.batch * edit_sentence_words(d.width, a.max_insertions);
    EditSetArguments all{set_arguments(d, scratch), a, sentences, samples};
    error = build_sets(all.sets, stream);
    if (error != cudaSuccess) return error;
    unsigned threads = static_cast<unsigned>(std::min<int64_t>((d.samples + 31) / 32 * 32, kEditThreads));
    return launch(draw_edit_kernel, all, {d.samples ? d.batch : 0, threads, 0, 0}, stream);
}

}  // namespace cuda
}  // namespace smoothloss
