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
SMOOTHLOSS_NGRAM_HD void inverse_frequencies(const Frequencies& f, const Sentence<Token>& a, int64_t i, double* idf) {
    uint32_t node = 0;
    bool known = true;
    int most = static_cast<int>(smaller(kCiderOrder, a.length - i));
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
SMOOTHLOSS_NGRAM_HD void cider_terms(const Frequencies& f, const Sentence<Token>& a, int64_t i, CiderTerm* terms,
                                     double* norms) {
    double idf[kCiderOrder];
    int64_t counts[kCiderOrder];
    inverse_frequencies(f, a, i, idf);
    count_own(a, i, kCiderOrder, counts);
    for (int n = 0; n < kCiderOrder; ++n) {
        terms[n] = {idf[n] * idf[n], counts[n]};
        norms[n] += terms[n].squared_idf * static_cast<double>(counts[n] * counts[n]);
    }
}

// Adds position i's share of the products of the candidate's vector with a reference's.
template <class Token>
SMOOTHLOSS_NGRAM_HD void add_products(const Sentence<Token>& a, int64_t i, const CiderTerm* terms,
                                      const Sentence<int32_t>& other, bool clip, double* products) {
    int64_t counts[kCiderOrder];
    count_in(a, i, other, kCiderOrder, counts);
    for (int n = 0; n < kCiderOrder && counts[n]; ++n) {
        int64_t own = clip ? smaller(terms[n].count, counts[n]) : terms[n].count;
        products[n] += terms[n].squared_idf * static_cast<double>(own * counts[n]);
    }
}

// CIDEr-D's length is the number of bigrams.
SMOOTHLOSS_NGRAM_HD double length_penalty(int64_t length, int64_t other, double sigma) {
    double difference = static_cast<double>(num_ngrams(length, 2) - num_ngrams(other, 2));
    return exp(-difference * difference / (2 * sigma * sigma));
}

// Sum of the orders' cosines with one reference; norms are not squared.
SMOOTHLOSS_NGRAM_HD double cosines(const double* products, const double* norms, const double* other) {
    double sum = 0;
    for (int n = 0; n < kCiderOrder; ++n) {
        double both = norms[n] * other[n];
        if (both > 0) sum += products[n] / both;
    }
    return sum;
}

}  // namespace ngram
}  // namespace smoothloss
