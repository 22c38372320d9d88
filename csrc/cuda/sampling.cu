// A draw in one launch, in two where the pool is a set of tokens that must be built first. One warp a sample of a
// sentence: its lanes share the positions.
#include "cuda/sampling.h"

#include <algorithm>

#include "cuda/block.cuh"
#include "cuda/launch.cuh"

namespace smoothloss {
namespace cuda {
namespace {

constexpr unsigned kDrawWarps = 4;
constexpr int32_t kEmpty = INT32_MAX;

// The sets of a batch, one of all its tokens or one of the references of each sentence.
struct SetArguments {
    DrawArguments draw;
    int64_t sets, elements, capacity;  // capacity: a power of two
    int64_t* tokens;                   // (sets, elements): the tokens of each set, in the order of first appearance
    int64_t* sizes;                    // (sets)
    int32_t* slots;                    // (sets, capacity): open hash tables of elements: the first of each token
    int32_t* ranks;                    // (sets, elements): of the elements that are the first of their token
    int32_t* target_ranks;             // (batch, width): of the target's tokens in their sentence's set, -1: none
};

SetArguments set_arguments(const DrawArguments& a, int64_t* scratch) {
    bool of_batch = a.pool == PoolKind::batch;
    int64_t sets = of_batch ? 1 : a.batch, elements = of_batch ? a.batch * a.width : a.references_width;
    int64_t capacity = 1;
    while (capacity <= 2 * elements) capacity *= 2;
    int64_t* sizes = scratch + sets * elements;
    int32_t* slots = reinterpret_cast<int32_t*>(sizes + sets);
    int32_t* ranks = slots + sets * capacity;
    return {a, sets, elements, capacity, scratch, sizes, slots, ranks, ranks + sets * elements};
}

bool has_sets(const DrawArguments& a) {
    return a.pool == PoolKind::batch || a.pool == PoolKind::references;
}

// One block builds a set. The order in which its threads arrive changes where tokens stand in the table, never which
// element is the first of its token.
struct SetOfBlock {
    const SetArguments& a;
    int64_t set;

    __device__ __forceinline__ int64_t token(int64_t element) const {
        const DrawArguments& d = a.draw;
        return d.pool == PoolKind::batch ? read_token(d.target, element)
                                         : read_token(d.references, set * a.elements + element);
    }

    __device__ __forceinline__ bool counts(int64_t element) const {
        const DrawArguments& d = a.draw;
        if (is_excluded(d, token(element))) return false;
        return d.pool != PoolKind::batch || element % d.width < length_of(d, element / d.width);
    }

    __device__ __forceinline__ int32_t* first_slot(int64_t own, int64_t* at) const {
        *at = static_cast<int64_t>((static_cast<uint64_t>(own) * 0x9E3779B97F4A7C15u >> 32) &
                                   static_cast<uint64_t>(a.capacity - 1));
        return a.slots + set * a.capacity;
    }

    __device__ __forceinline__ void insert(int32_t element) const {
        int64_t own = token(element), at;
        int32_t* slots = first_slot(own, &at);
        while (true) {
            int32_t before = atomicCAS(slots + at, kEmpty, element);
            if (before == kEmpty) return;
            if (token(before) == own) {
                atomicMin(slots + at, element);
                return;
            }
            at = (at + 1) & (a.capacity - 1);
        }
    }

    // The first element of this token, or kEmpty.
    __device__ __forceinline__ int32_t find(int64_t own) const {
        int64_t at;
        int32_t* slots = first_slot(own, &at);
        while (slots[at] != kEmpty && token(slots[at]) != own) at = (at + 1) & (a.capacity - 1);
        return slots[at];
    }
};

// How many threads of the block before this one say yes, and how many in all.
struct Count {
    int32_t before, total;
};

__device__ __forceinline__ Count count_of_block(bool yes, int32_t* of_warps) {
    unsigned votes = __ballot_sync(kAllLanes, yes);
    if (lane_id() == 0) of_warps[warp_id()] = __popc(votes);
    __syncthreads();
    Count count{__popc(votes & ((1u << lane_id()) - 1)), 0};
    for (int w = 0; w < static_cast<int>(blockDim.x / 32); ++w) {
        if (w < warp_id()) count.before += of_warps[w];
        count.total += of_warps[w];
    }
    __syncthreads();  // before anybody writes to of_warps again
    return count;
}

__global__ void __launch_bounds__(1024) token_sets_kernel(SetArguments a) {
    __shared__ int32_t of_warps[32];
    SetOfBlock set{a, static_cast<int64_t>(blockIdx.x)};
    int64_t own = threadIdx.x, step = blockDim.x;
    for (int64_t i = own; i < a.capacity; i += step) a.slots[set.set * a.capacity + i] = kEmpty;
    __syncthreads();
    for (int64_t i = own; i < a.elements; i += step) {
        if (set.counts(i)) set.insert(static_cast<int32_t>(i));
    }
    __syncthreads();
    int32_t size = 0;
    for (int64_t begin = 0; begin < a.elements; begin += step) {
        int64_t i = begin + own;
        bool is_first = i < a.elements && set.counts(i) && set.find(set.token(i)) == i;
        Count count = count_of_block(is_first, of_warps);
        if (is_first) {
            a.ranks[set.set * a.elements + i] = size + count.before;
            a.tokens[set.set * a.elements + size + count.before] = set.token(i);
        }
        size += count.total;
    }
    if (own == 0) a.sizes[set.set] = size;
    __syncthreads();
    const DrawArguments& d = a.draw;
    int64_t begin = d.pool == PoolKind::batch ? 0 : set.set * d.width;
    int64_t end = d.pool == PoolKind::batch ? d.batch * d.width : begin + d.width;
    for (int64_t i = begin + own; i < end; i += step) {
        int32_t first = set.find(read_token(d.target, i));
        a.target_ranks[i] = first == kEmpty ? -1 : a.ranks[set.set * a.elements + first];
    }
}

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

__global__ void __launch_bounds__(32 * kDrawWarps) draw_hamming_kernel(SetArguments a) {
    const DrawArguments& d = a.draw;
    int64_t sequence = static_cast<int64_t>(blockIdx.x) * kDrawWarps + warp_id();
    if (sequence >= d.samples * d.batch) return;
    int64_t sample = sequence / d.batch, sentence = sequence - sample * d.batch;
    uint64_t seed = static_cast<uint64_t>(*d.seed);
    int64_t length = length_of(d, sentence);
    int32_t distance = 0;
    double ratio = 0, log_normalizer = 0;
    for (int64_t t = lane_id(); t < d.width; t += 32) {
        int64_t at = sentence * d.width + t, token = read_token(d.target, at), drawn = token;
        Choices choices = t < length ? choices_of(a, sentence, at, token) : Choices{0, -1, nullptr};
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

int build_sets(const SetArguments& a, void* stream) {
    const DrawArguments& d = a.draw;
    if (!has_sets(d) || d.samples * d.batch == 0) return cudaSuccess;
    int64_t most = d.pool == PoolKind::batch ? a.elements : std::max(a.elements, d.width);
    return launch(token_sets_kernel, a, {a.sets, most <= 256 ? 256u : 1024u, 0, 0}, stream);
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
