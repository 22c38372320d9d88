// CIDEr and CIDEr-D of one candidate: cosines of tf-idf vectors of n-grams, averaged over orders and references.
#pragma once

#include <cmath>

#include "ngram/bleu.h"

namespace smoothloss {
namespace ngram {

SMOOTHLOSS_NGRAM_HD uint64_t slot_key(uint32_t parent, int32_t token) {
    return static_cast<uint64_t>(parent) << 32 | static_cast<uint64_t>(static_cast<uint32_t>(token) + 1u);
}

SMOOTHLOSS_NGRAM_HD uint64_t mix(uint64_t key) {
    key ^= key >> 32;
    key *= 0x9E3779B97F4A7C15ull;
    return key ^ (key >> 29);
}

// The slot of a parent's child, or an empty one.
SMOOTHLOSS_NGRAM_HD Slot find(const Frequencies& f, uint32_t parent, int64_t token) {
    if (token < 0 || token >= INT32_MAX) return {0, 0, 0};
    uint64_t key = slot_key(parent, static_cast<int32_t>(token));
    for (uint64_t at = mix(key) & f.mask;; at = (at + 1) & f.mask) {
        Slot slot = f.slots[at];
        if (slot.key == key || slot.key == 0) return slot;
    }
}

// idf[n - 1] of the n-grams that begin at position i, as far as they fit.
template <class Token>
SMOOTHLOSS_NGRAM_HD void inverse_frequencies(const Frequencies& f, const Sentence<Token>& a, int i, double* idf) {
    uint32_t node = 0;
    bool known = true;
    int most = smaller(kCiderOrder, a.length - i);
    for (int n = 0; n < kCiderOrder; ++n) {
        uint32_t documents = 0;
        if (known && n < most) {
            Slot slot = find(f, node, static_cast<int64_t>(a.tokens[i + n]));
            known = slot.key != 0;
            node = slot.node;
            documents = known ? slot.documents : 0;
        }
        idf[n] = f.log_documents - f.log_df[documents <= f.max_documents ? documents : f.max_documents];
    }
}

// The terms of the n-grams at position i; their squares are added to norms.
template <class Token>
SMOOTHLOSS_NGRAM_HD void cider_terms(const Frequencies& f, const Sentence<Token>& a, int i, CiderTerm* terms,
                                     double* norms) {
    double idf[kCiderOrder];
    int counts[kCiderOrder];
    inverse_frequencies(f, a, i, idf);
    count_own<kCiderOrder>(a, i, kCiderOrder, counts);
    for (int n = 0; n < kCiderOrder; ++n) {
        terms[n] = {idf[n] * idf[n], counts[n]};
        norms[n] += terms[n].squared_idf * counts[n] * counts[n];
    }
}

// Adds position i's share of the products of the candidate's vector with a reference's.
template <class Token>
SMOOTHLOSS_NGRAM_HD void add_products(const Sentence<Token>& a, int i, const CiderTerm* terms,
                                      const Sentence<int32_t>& other, bool clip, double* products) {
    int counts[kCiderOrder];
    count_in<kCiderOrder>(a, i, other, kCiderOrder, counts);
    if (counts[0] == 0) return;
    for (int n = 0; n < kCiderOrder; ++n) {
        int own = clip ? smaller(terms[n].count, counts[n]) : terms[n].count;
        products[n] += terms[n].squared_idf * own * counts[n];
    }
}

// CIDEr-D's length is the number of bigrams.
SMOOTHLOSS_NGRAM_HD double length_penalty(int length, int other, double sigma) {
    double difference = num_ngrams(length, 2) - num_ngrams(other, 2);
    return exp(-difference * difference / (2 * sigma * sigma));
}

template <class Team>
SMOOTHLOSS_NGRAM_HD double norm(const Team& team, double squares) {
    return sqrt(team.sum(squares));
}

// `terms`: (candidate.length, 4), of which each member of the team uses its own positions. What is left to the end is
// to divide by the candidate's norms, and to add up what the members have.
template <class Team, class Token>
SMOOTHLOSS_NGRAM_HD void score_cider(const Team& team, const CiderArguments& a, const Sentence<Token>& candidate,
                                     int64_t number, int64_t input, CiderTerm* terms) {
    double squares[kCiderOrder] = {}, sums[kCiderOrder] = {};
    for (int i = team.rank(); i < candidate.length; i += Team::kSize) {
        cider_terms(a.frequencies, candidate, i, terms + static_cast<int64_t>(i) * kCiderOrder, squares);
    }
    Span span = span_of(a.references, input);
    for (int64_t s = span.first; s < span.last; ++s) {
        Sentence<int32_t> other = reference(a.references, s);
        double products[kCiderOrder] = {};
        for (int i = team.rank(); i < candidate.length; i += Team::kSize) {
            add_products(candidate, i, terms + static_cast<int64_t>(i) * kCiderOrder, other, a.is_cider_d, products);
        }
        double penalty = a.is_cider_d ? length_penalty(candidate.length, other.length, a.sigma) : 1;
        for (int n = 0; n < kCiderOrder; ++n) {
            double length = a.norms[s * kCiderOrder + n];
            if (length > 0) sums[n] += penalty * products[n] / length;
        }
    }
    double score = 0;
    for (int n = 0; n < kCiderOrder; ++n) {
        double length = norm(team, squares[n]), sum = team.sum(sums[n]);
        if (length > 0) score += sum / length;
    }
    double count = static_cast<double>(span.last - span.first);
    if (team.rank() == 0) a.scores[number] = count > 0 ? 10 * score / (kCiderOrder * count) : 0;
}

// The lengths of a reference's own vectors.
template <class Team>
SMOOTHLOSS_NGRAM_HD void write_norms(const Team& team, const CiderNormArguments& a, int64_t number) {
    Sentence<int32_t> sentence = reference(a.references, number);
    double squares[kCiderOrder] = {};
    CiderTerm terms[kCiderOrder];
    for (int i = team.rank(); i < sentence.length; i += Team::kSize) {
        cider_terms(a.frequencies, sentence, i, terms, squares);
    }
    for (int n = 0; n < kCiderOrder; ++n) {
        double length = norm(team, squares[n]);
        if (team.rank() == 0) a.norms[number * kCiderOrder + n] = length;
    }
}

}  // namespace ngram
}  // namespace smoothloss
