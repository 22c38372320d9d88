// Sentence BLEU: clipped n-gram matches against the references of an input, and what becomes of them.
#pragma once

#include <cmath>

#include "ngram/team.h"

namespace smoothloss {
namespace ngram {

template <int ORDER>
struct BleuCounts {
    int length;
    int reference_length;
    int matches[ORDER];
};

// Adds position i's share of the clipped matches: those of the n-grams that occur there first.
template <int ORDER, class Token>
SMOOTHLOSS_NGRAM_HD void add_matches(const Sentence<Token>& candidate, int i, const References& references,
                                     const Span& span, int order, int* matches) {
    int own[ORDER], most[ORDER], counts[ORDER];
    count_own<ORDER>(candidate, i, order, own);
    for (int n = 0; n < ORDER; ++n) most[n] = 0;
    for (int64_t s = span.first; s < span.last; ++s) {
        count_in<ORDER>(candidate, i, reference(references, s), order, counts);
        for (int n = 0; n < ORDER; ++n) most[n] = larger(most[n], counts[n]);
    }
    for (int n = 0; n < ORDER; ++n) matches[n] += smaller(own[n], most[n]);
}

// The length closest to the candidate's, the shorter one of two; 0 without references.
SMOOTHLOSS_NGRAM_HD int closest_length(const References& r, const Span& span, int length) {
    int closest = 0, smallest = INT32_MAX;
    for (int64_t s = span.first; s < span.last; ++s) {
        int other = reference(r, s).length;
        int difference = larger(other, length) - smaller(other, length);
        if (difference > smallest || (difference == smallest && other >= closest)) continue;
        closest = other, smallest = difference;
    }
    return closest;
}

template <int ORDER, class Team, class Token>
SMOOTHLOSS_NGRAM_HD BleuCounts<ORDER> count_bleu(const Team& team, const Sentence<Token>& candidate,
                                                 const References& references, const Span& span, int order) {
    BleuCounts<ORDER> counts{candidate.length, closest_length(references, span, candidate.length), {}};
    for (int i = team.rank(); i < candidate.length; i += Team::kSize) {
        add_matches<ORDER>(candidate, i, references, span, order, counts.matches);
    }
    for (int n = 0; n < ORDER; ++n) counts.matches[n] = team.sum(counts.matches[n]);
    return counts;
}

SMOOTHLOSS_NGRAM_HD int num_ngrams(int length, int n) {
    return length < n ? 0 : length - n + 1;
}

// coco-caption's: tiny numbers in place of a smoothing, which keep 0 / 0 away and are seen in its per-image scores.
template <int ORDER>
SMOOTHLOSS_NGRAM_HD double coco_bleu(const BleuCounts<ORDER>& c, int order) {
    constexpr double kTiny = 1e-15, kSmall = 1e-9;
    double product = 1;
    for (int n = 1; n <= ORDER; ++n) {
        double precision = (c.matches[n - 1] + kTiny) / (num_ngrams(c.length, n) + kSmall);
        product *= n <= order ? precision : 1;
    }
    double ratio = (c.length + kTiny) / (c.reference_length + kSmall);
    double bleu = pow(product, 1.0 / order);
    return ratio < 1 ? bleu * exp(1 - 1 / ratio) : bleu;
}

template <int ORDER>
SMOOTHLOSS_NGRAM_HD double brevity_penalty(const BleuCounts<ORDER>& c) {
    if (c.length >= c.reference_length) return 1;
    return c.length > 0 ? exp(1 - static_cast<double>(c.reference_length) / c.length) : 0;
}

// The paper's: k added to matches and n-grams of every order, the unigrams too.
template <int ORDER>
SMOOTHLOSS_NGRAM_HD double add_k_bleu(const BleuCounts<ORDER>& c, int order, double k) {
    double sum = 0;
    for (int n = 1; n <= ORDER; ++n) {
        if (n > order) break;
        if (c.matches[n - 1] + k == 0) return 0;
        sum += log((c.matches[n - 1] + k) / (num_ngrams(c.length, n) + k));
    }
    return brevity_penalty(c) * exp(sum / order);
}

// sacrebleu's definition, its smoothings included.
template <int ORDER>
SMOOTHLOSS_NGRAM_HD double bleu_score(const BleuCounts<ORDER>& c, int order, Smoothing smoothing, double k,
                                      bool effective_order) {
    if (smoothing == Smoothing::coco) return coco_bleu(c, order);
    if (smoothing == Smoothing::add_k_all) return add_k_bleu(c, order, k);
    bool any = false;
    for (int n = 1; n <= ORDER; ++n) any = any || (n <= order && c.matches[n - 1] > 0);
    if (!any) return 0;
    double sum = 0, halvings = 1;
    int used = order;
    for (int n = 1; n <= ORDER; ++n) {
        if (n > order) break;
        double added = smoothing == Smoothing::add_k && n > 1 ? k : 0;
        double matches = c.matches[n - 1] + added, total = num_ngrams(c.length, n) + added;
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

template <int ORDER>
SMOOTHLOSS_NGRAM_HD void write_statistics(const BleuCounts<ORDER>& counts, int order, int64_t* out) {
    out[0] = counts.length;
    out[1] = counts.reference_length;
    for (int n = 1; n <= ORDER; ++n) {
        if (n > order) break;
        out[1 + n] = counts.matches[n - 1];
        out[1 + order + n] = num_ngrams(counts.length, n);
    }
}

template <int ORDER, class Team, class Token>
SMOOTHLOSS_NGRAM_HD void score_bleu(const Team& team, const BleuArguments& a, const Sentence<Token>& candidate,
                                    int64_t number, int64_t input) {
    Span span = span_of(a.references, input);
    BleuCounts<ORDER> counts = count_bleu<ORDER>(team, candidate, a.references, span, a.order);
    if (team.rank() != 0) return;
    bool any = span.first < span.last;
    if (a.scores) a.scores[number] = any ? bleu_score(counts, a.order, a.smoothing, a.k, a.effective_order) : 0;
    if (a.statistics) write_statistics(counts, a.order, a.statistics + number * (2 + 2 * a.order));
}

}  // namespace ngram
}  // namespace smoothloss
