#include "cpu/rewards.h"

#include <algorithm>
#include <vector>

#include "cpu/parallel.h"
#include "ngram/alignment.h"
#include "ngram/cider.h"

namespace smoothloss {

using namespace ngram;

namespace {

// Fewer tokens than this are scored sooner than a second thread is woken.
constexpr int64_t kMinTokensPerThread = 1 << 9;

int workers(int64_t tokens, int threads) {
    return static_cast<int>(std::clamp<int64_t>(tokens / kMinTokensPerThread, 1, threads));
}

// What one thread works with: grown once, used for all its candidates.
struct Scratch {
    std::vector<int32_t> tokens;
    std::vector<CiderTerm> terms;
    std::vector<uint64_t> carries;
};

// The ids are within 32 bits: the bindings have looked.
Sentence<int32_t> load(const Candidates& candidates, int64_t c, int64_t input, Scratch& scratch) {
    if (!candidates.are_int64) return candidate_sentence<int32_t>(candidates, c, input);
    Sentence<int64_t> wide = candidate_sentence<int64_t>(candidates, c, input);
    scratch.tokens.resize(static_cast<size_t>(wide.length));
    for (int i = 0; i < wide.length; ++i) scratch.tokens[static_cast<size_t>(i)] = static_cast<int32_t>(wide.tokens[i]);
    return {scratch.tokens.data(), wide.length};
}

template <class Score>
void for_each(int64_t count, int num_threads, Score score) {
    share_out(count, 16, num_threads, [&](Chunks& chunks, int) {
        Scratch scratch;
        chunks.for_each([&](int64_t begin, int64_t end) {
            for (int64_t c = begin; c < end; ++c) score(c, scratch);
        });
    });
}

template <class Score>
void for_each_candidate(const Candidates& candidates, const References& references, int threads, Score score) {
    for_each(candidates.count, workers(candidates.count * candidates.width, threads), [&](int64_t c, Scratch& scratch) {
        int64_t input = c % references.inputs;
        score(c, load(candidates, c, input, scratch), input, scratch);
    });
}

template <int ORDER>
void bleu(const BleuArguments& a, int threads) {
    auto score = [&](int64_t c, const Sentence<int32_t>& candidate, int64_t input, Scratch&) {
        score_bleu<ORDER>(SingleThread(), a, candidate, c, input);
    };
    for_each_candidate(a.candidates, a.references, threads, score);
}

}  // namespace

void sentence_bleu(const BleuArguments& a, int threads) {
    a.order <= kUsualOrder ? bleu<kUsualOrder>(a, threads) : bleu<kMaxOrder>(a, threads);
}

void cider(const CiderArguments& a, int threads) {
    auto score = [&](int64_t c, const Sentence<int32_t>& candidate, int64_t input, Scratch& scratch) {
        scratch.terms.resize(static_cast<size_t>(candidate.length) * kCiderOrder);
        score_cider(SingleThread(), a, candidate, c, input, scratch.terms.data());
    };
    for_each_candidate(a.candidates, a.references, threads, score);
}

void cider_norms(const CiderNormArguments& a, int threads) {
    int64_t tokens = a.references.num_sentences ? a.references.offsets[a.references.num_sentences] : 0;
    for_each(a.references.num_sentences, workers(tokens, threads),
             [&](int64_t s, Scratch&) { write_norms(SingleThread(), a, s); });
}

void alignment(const AlignmentArguments& a, int threads) {
    auto score = [&](int64_t c, const Sentence<int32_t>& candidate, int64_t input, Scratch& scratch) {
        scratch.carries.resize(static_cast<size_t>(num_carries(candidate.length)));
        score_alignment(SingleThread(), a, candidate, c, input, scratch.carries.data());
    };
    for_each_candidate(a.candidates, a.references, threads, score);
}

}  // namespace smoothloss
