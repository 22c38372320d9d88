#include "cpu/rewards.h"

#include <algorithm>
#include <vector>

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
    std::vector<int32_t> row;
};

Sentence<int32_t> load(const Candidates& candidates, int64_t c, Scratch& scratch) {
    int64_t length = candidates.lengths[c];
    if (!candidates.are_int64) {
        return {static_cast<const int32_t*>(candidates.tokens) + c * candidates.width, length};
    }
    const int64_t* tokens = static_cast<const int64_t*>(candidates.tokens) + c * candidates.width;
    scratch.tokens.resize(static_cast<size_t>(length));
    for (int64_t i = 0; i < length; ++i) scratch.tokens[static_cast<size_t>(i)] = static_cast<int32_t>(tokens[i]);
    return {scratch.tokens.data(), length};
}

template <class Score>
void for_each(int64_t count, int team, Score score) {
#ifdef _OPENMP
#pragma omp parallel num_threads(team)
#endif
    {
        Scratch scratch;
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 16)
#endif
        for (int64_t c = 0; c < count; ++c) score(c, scratch);
    }
    (void)team;
}

template <class Score>
void for_each_candidate(const Candidates& candidates, const References& references, int threads, Score score) {
    for_each(candidates.count, workers(candidates.count * candidates.width, threads), [&](int64_t c, Scratch& scratch) {
        score(c, load(candidates, c, scratch), c % references.inputs, scratch);
    });
}

BleuCounts count_bleu(const Sentence<int32_t>& candidate, const References& references, int64_t input, int order) {
    Span span = span_of(references, input);
    BleuCounts counts{candidate.length, closest_length(references, span, candidate.length), {}};
    for (int64_t i = 0; i < candidate.length; ++i) add_matches(candidate, i, references, span, order, counts.matches);
    return counts;
}

void write_statistics(const BleuCounts& counts, int order, int64_t* out) {
    out[0] = counts.length;
    out[1] = counts.reference_length;
    for (int n = 1; n <= order; ++n) {
        out[1 + n] = counts.matches[n - 1];
        out[1 + order + n] = num_ngrams(counts.length, n);
    }
}

void square_roots(double* norms) {
    for (int n = 0; n < kCiderOrder; ++n) norms[n] = std::sqrt(norms[n]);
}

double cider_score(const CiderArguments& a, const Sentence<int32_t>& candidate, int64_t input, CiderTerm* terms) {
    double norms[kCiderOrder] = {};
    for (int64_t i = 0; i < candidate.length; ++i) {
        cider_terms(a.frequencies, candidate, i, terms + i * kCiderOrder, norms);
    }
    square_roots(norms);
    Span span = span_of(a.references, input);
    double sum = 0;
    for (int64_t s = span.first; s < span.last; ++s) {
        Sentence<int32_t> other = reference(a.references, s);
        double products[kCiderOrder] = {};
        for (int64_t i = 0; i < candidate.length; ++i) {
            add_products(candidate, i, terms + i * kCiderOrder, other, a.is_cider_d, products);
        }
        double penalty = a.is_cider_d ? length_penalty(candidate.length, other.length, a.sigma) : 1;
        sum += penalty * cosines(products, norms, a.norms + s * kCiderOrder);
    }
    int64_t count = span.last - span.first;
    return count ? 10 * sum / static_cast<double>(kCiderOrder * count) : 0;
}

}  // namespace

void sentence_bleu(const BleuArguments& a, int threads) {
    auto score = [&](int64_t c, const Sentence<int32_t>& candidate, int64_t input, Scratch&) {
        BleuCounts counts = count_bleu(candidate, a.references, input, a.order);
        Span span = span_of(a.references, input);
        bool any = span.first < span.last;
        if (a.scores) a.scores[c] = any ? bleu_score(counts, a.order, a.smoothing, a.k, a.effective_order) : 0;
        if (a.statistics) write_statistics(counts, a.order, a.statistics + c * (2 + 2 * a.order));
    };
    for_each_candidate(a.candidates, a.references, threads, score);
}

void cider(const CiderArguments& a, int threads) {
    auto score = [&](int64_t c, const Sentence<int32_t>& candidate, int64_t input, Scratch& scratch) {
        scratch.terms.resize(static_cast<size_t>(candidate.length * kCiderOrder));
        a.scores[c] = cider_score(a, candidate, input, scratch.terms.data());
    };
    for_each_candidate(a.candidates, a.references, threads, score);
}

void cider_norms(const CiderNormArguments& a, int threads) {
    int64_t tokens = a.references.num_sentences ? a.references.offsets[a.references.num_sentences] : 0;
    for_each(a.references.num_sentences, workers(tokens, threads), [&](int64_t s, Scratch&) {
        Sentence<int32_t> sentence = reference(a.references, s);
        double* norms = a.norms + s * kCiderOrder;
        CiderTerm terms[kCiderOrder];
        std::fill_n(norms, kCiderOrder, 0.0);
        for (int64_t i = 0; i < sentence.length; ++i) cider_terms(a.frequencies, sentence, i, terms, norms);
        square_roots(norms);
    });
}

void alignment(const AlignmentArguments& a, int threads) {
    auto score = [&](int64_t c, const Sentence<int32_t>& candidate, int64_t input, Scratch& scratch) {
        scratch.row.resize(static_cast<size_t>(candidate.length) + 1);
        a.scores[c] = alignment_score(candidate, a, input, scratch.row.data());
    };
    for_each_candidate(a.candidates, a.references, threads, score);
}

}  // namespace smoothloss
