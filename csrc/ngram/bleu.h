// Sentence BLEU: clipped n-gram matches against the references of an input, and what becomes of them.
#pragma once

#include <cmath>

#include "ngram/matches.h"

namespace smoothloss {
namespace ngram {

struct Span {
    int64_t first;
    int64_t last;  // one behind
};

SMOOTHLOSS_NGRAM_HD Span span_of(const References& r, int64_t input) {
    return {r.spans[2 * input], r.spans[2 * input + 1]};
}

// Adds position i's share of the clipped matches: those of the n-grams that occur there first.
template <class Token>
SMOOTHLOSS_NGRAM_HD void add_matches(const Sentence<Token>& candidate, int64_t i, const References& references,
                                     const Span& span, int order, int64_t* matches) {
    int64_t own[kMaxOrder], most[kMaxOrder], counts[kMaxOrder];
    count_own(candidate, i, order, own);
    for (int n = 0; n < order; ++n) most[n] = 0;
    for (int64_t s = span.first; s < span.last; ++s) {
        count_in(candidate, i, reference(references, s), order, counts);
        for (int n = 0; n < order && counts[n]; ++n) most[n] = counts[n] > most[n] ? counts[n] : most[n];
    }
    for (int n = 0; n < order; ++n) matches[n] += smaller(own[n], most[n]);
}

// The length closest to the candidate's, the shorter one of two; 0 without references.
SMOOTHLOSS_NGRAM_HD int64_t closest_length(const References& r, const Span& span, int64_t length) {
    int64_t closest = 0, smallest = INT64_MAX;
    for (int64_t s = span.first; s < span.last; ++s) {
        int64_t other = r.offsets[s + 1] - r.offsets[s];
        int64_t difference = other > length ? other - length : length - other;
        if (difference > smallest || (difference == smallest && other >= closest)) continue;
        closest = other, smallest = difference;
    }
    return closest;
}

struct BleuCounts {
    int64_t length;
    int64_t reference_length;
    int64_t matches[kMaxOrder];
};

SMOOTHLOSS_NGRAM_HD int64_t num_ngrams(int64_t length, int n) {
    return length < n ? 0 : length - n + 1;
}

// coco-caption's: tiny numbers in place of a smoothing, which keep 0 / 0 away and are seen in its per-image scores.
SMOOTHLOSS_NGRAM_HD double coco_bleu(const BleuCounts& c, int order) {
    constexpr double kTiny = 1e-15, kSmall = 1e-9;
    double product = 1;
    for (int n = 1; n <= order; ++n) {
        product *=
            (static_cast<double>(c.matches[n - 1]) + kTiny) / (static_cast<double>(num_ngrams(c.length, n)) + kSmall);
    }
    double ratio = (static_cast<double>(c.length) + kTiny) / (static_cast<double>(c.reference_length) + kSmall);
    double bleu = pow(product, 1.0 / order);
    return ratio < 1 ? bleu * exp(1 - 1 / ratio) : bleu;
}

SMOOTHLOSS_NGRAM_HD double brevity_penalty(const BleuCounts& c) {
    if (c.length >= c.reference_length) return 1;
    return c.length > 0 ? exp(1 - static_cast<double>(c.reference_length) / static_cast<double>(c.length)) : 0;
}

// The paper's: k added to matches and n-grams of every order, the unigrams too.
SMOOTHLOSS_NGRAM_HD double add_k_bleu(const BleuCounts& c, int order, double k) {
    double sum = 0;
    for (int n = 1; n <= order; ++n) {
        double matches = static_cast<double>(c.matches[n - 1]) + k;
        double total = static_cast<double>(num_ngrams(c.length, n)) + k;
        if (matches == 0) return 0;  // k = 0
        sum += log(matches / total);
    }
    return brevity_penalty(c) * exp(sum / order);
}

// sacrebleu's definition, its smoothings included.
SMOOTHLOSS_NGRAM_HD double bleu_score(const BleuCounts& c, int order, Smoothing smoothing, double k,
                                      bool effective_order) {
    if (smoothing == Smoothing::coco) return coco_bleu(c, order);
    if (smoothing == Smoothing::add_k_all) return add_k_bleu(c, order, k);
    bool any = false;
    for (int n = 0; n < order; ++n) any = any || c.matches[n] > 0;
    if (!any) return 0;
    double sum = 0, halvings = 1;
    int used = order;
    for (int n = 1; n <= order; ++n) {
        bool add = smoothing == Smoothing::add_k && n > 1;
        double matches = static_cast<double>(c.matches[n - 1]) + (add ? k : 0);
        double total = static_cast<double>(num_ngrams(c.length, n)) + (add ? k : 0);
        if (total == 0) {
            if (!effective_order) return 0;
            break;
        }
        if (effective_order) used = n;
        if (matches == 0 && smoothing == Smoothing::exp) matches = 1 / (halvings *= 2);
        if (matches == 0 && smoothing == Smoothing::floor) matches = k;
        if (matches == 0) return 0;
        sum += log(matches / total);
    }
    return brevity_penalty(c) * exp(sum / used);
}

}  // namespace ngram
}  // namespace smoothloss
