// ROUGE-L, Hamming and edit distance of one candidate. `row` is room for one row of a dynamic programme.
#pragma once

#include "ngram/bleu.h"

namespace smoothloss {
namespace ngram {

// Length of the longest common subsequence; `row` holds a.length + 1 numbers.
template <class Token>
SMOOTHLOSS_NGRAM_HD int64_t common_subsequence(const Sentence<Token>& a, const Sentence<int32_t>& b, int32_t* row) {
    for (int64_t i = 0; i <= a.length; ++i) row[i] = 0;
    for (int64_t j = 0; j < b.length; ++j) {
        int32_t diagonal = 0;
        for (int64_t i = 1; i <= a.length; ++i) {
            int32_t above = row[i];
            int32_t longer = above > row[i - 1] ? above : row[i - 1];
            row[i] = a.tokens[i - 1] == b.tokens[j] ? diagonal + 1 : longer;
            diagonal = above;
        }
    }
    return row[a.length];
}

// Fewest substitutions, insertions and deletions; `row` as above.
template <class Token>
SMOOTHLOSS_NGRAM_HD int64_t edit_distance(const Sentence<Token>& a, const Sentence<int32_t>& b, int32_t* row) {
    for (int64_t i = 0; i <= a.length; ++i) row[i] = static_cast<int32_t>(i);
    for (int64_t j = 0; j < b.length; ++j) {
        int32_t diagonal = row[0]++;
        for (int64_t i = 1; i <= a.length; ++i) {
            int32_t above = row[i];
            int32_t gap = 1 + (above < row[i - 1] ? above : row[i - 1]);
            int32_t replaced = diagonal + (a.tokens[i - 1] == b.tokens[j] ? 0 : 1);
            row[i] = gap < replaced ? gap : replaced;
            diagonal = above;
        }
    }
    return row[a.length];
}

// Positions that differ; those that only the longer one has are among them.
template <class Token>
SMOOTHLOSS_NGRAM_HD int64_t hamming_distance(const Sentence<Token>& a, const Sentence<int32_t>& b) {
    int64_t shorter = smaller(a.length, b.length);
    int64_t distance = a.length + b.length - 2 * shorter;
    for (int64_t i = 0; i < shorter; ++i) distance += a.tokens[i] != b.tokens[i];
    return distance;
}

// The largest precision and the largest recall, of different references perhaps, as coco-caption has it.
template <class Token>
SMOOTHLOSS_NGRAM_HD double rouge_l(const Sentence<Token>& a, const References& r, const Span& span, double beta,
                                   int32_t* row) {
    double precision = 0, recall = 0;
    for (int64_t s = span.first; s < span.last; ++s) {
        Sentence<int32_t> b = reference(r, s);
        if (a.length == 0 || b.length == 0) continue;
        double common = static_cast<double>(common_subsequence(a, b, row));
        double p = common / static_cast<double>(a.length), q = common / static_cast<double>(b.length);
        precision = p > precision ? p : precision;
        recall = q > recall ? q : recall;
    }
    if (precision == 0 || recall == 0) return 0;
    return (1 + beta * beta) * precision * recall / (recall + beta * beta * precision);
}

// Minus the distance to the nearest reference; without any, to the empty sentence.
template <class Token>
SMOOTHLOSS_NGRAM_HD double nearest(const Sentence<Token>& a, const References& r, const Span& span, Alignment kind,
                                   int32_t* row) {
    int64_t least = span.first < span.last ? INT64_MAX : a.length;
    for (int64_t s = span.first; s < span.last; ++s) {
        Sentence<int32_t> b = reference(r, s);
        least = smaller(least, kind == Alignment::hamming ? hamming_distance(a, b) : edit_distance(a, b, row));
    }
    return static_cast<double>(-least);
}

template <class Token>
SMOOTHLOSS_NGRAM_HD double alignment_score(const Sentence<Token>& a, const AlignmentArguments& arguments, int64_t input,
                                           int32_t* row) {
    Span span = span_of(arguments.references, input);
    if (arguments.kind == Alignment::rouge_l) return rouge_l(a, arguments.references, span, arguments.beta, row);
    return nearest(a, arguments.references, span, arguments.kind, row);
}

}  // namespace ngram
}  // namespace smoothloss
