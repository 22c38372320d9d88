// ROUGE-L, Hamming and edit distance of one candidate. The first and the last are dynamic programmes, of which a block
// of 32 tokens of the reference is kept in the bits of a word and goes through the candidate token by token. What the
// block's last row changes by at each token, +1, 0 or -1, is what the next block begins with: its carries.
#pragma once

#include "ngram/team.h"

namespace smoothloss {
namespace ngram {

// The length of the longest common subsequence (Crochemore et al. 2001, Hyyro 2004).
struct CommonSubsequence {
    static constexpr uint32_t kFirstRow = 0;  // its carries: the row is 0 everywhere

    uint32_t flat = ~0u;  // bit i: the length is the same with and without token i

    SMOOTHLOSS_NGRAM_HD explicit CommonSubsequence(int) {}

    SMOOTHLOSS_NGRAM_HD static int first_column(int) { return 0; }

    SMOOTHLOSS_NGRAM_HD void step(uint32_t equal, uint32_t& plus, uint32_t&) {
        uint64_t sum = static_cast<uint64_t>(flat) + (flat & equal) + plus;
        flat = static_cast<uint32_t>(sum) | (flat & ~equal);
        plus = static_cast<uint32_t>(sum >> 32);
    }
};

// Fewest substitutions, insertions and deletions (Myers 1999, Hyyro 2003).
struct EditDistance {
    static constexpr uint32_t kFirstRow = ~0u;  // 0, 1, 2, ...

    uint32_t rises = ~0u, falls = 0;  // bit i: the distance is larger, or smaller, with token i
    int last;

    SMOOTHLOSS_NGRAM_HD explicit EditDistance(int tokens) : last(tokens - 1) {}

    SMOOTHLOSS_NGRAM_HD static int first_column(int length) { return length; }

    SMOOTHLOSS_NGRAM_HD void step(uint32_t equal, uint32_t& plus, uint32_t& minus) {
        uint32_t diagonal = equal | falls;
        equal |= minus;
        uint32_t kept = (((equal & rises) + rises) ^ rises) | equal;
        uint32_t up = falls | ~(kept | rises), down = rises & kept;
        uint32_t next_up = up << 1 | plus, next_down = down << 1 | minus;
        rises = next_down | ~(diagonal | next_up);
        falls = next_up & diagonal;
        plus = up >> last & 1;
        minus = down >> last & 1;
    }
};

// Takes a block through the 32 tokens of `a` from `base` on. Replaces their carries; returns the sum of the new ones.
template <class Programme, class Block, class Token>
SMOOTHLOSS_NGRAM_HD int advance(Programme& programme, const Block& block, const Sentence<Token>& a, int base,
                                uint32_t* plus, uint32_t* minus) {
    uint32_t new_plus = 0, new_minus = 0;
    int sum = 0, count = smaller(32, a.length - base);
    for (int i = 0; i < count; ++i) {
        uint32_t up = *plus >> i & 1, down = *minus >> i & 1;
        programme.step(block.equal_to(a.tokens[base + i]), up, down);
        new_plus |= up << i;
        new_minus |= down << i;
        sum += static_cast<int>(up) - static_cast<int>(down);
    }
    *plus = new_plus;
    *minus = new_minus;
    return sum;
}

// Of a dynamic programme; `carries` holds num_carries(a.length) words.
template <class Programme, class Team, class Token>
SMOOTHLOSS_NGRAM_HD int last_element(const Team& team, const Sentence<Token>& a, const Sentence<int32_t>& b,
                                     uint64_t* carries) {
    int changes = Programme::kFirstRow ? a.length : 0;
    for (int first = 0; first < b.length; first += 32) {
        auto block = team.block(b, first);
        Programme programme(smaller(32, b.length - first));
        changes = 0;
        for (int base = 0; base < a.length; base += 32) {
            uint64_t before = first ? team.read(carries + base / 32) : Programme::kFirstRow;
            uint32_t plus = static_cast<uint32_t>(before), minus = static_cast<uint32_t>(before >> 32);
            changes += advance(programme, block, a, base, &plus, &minus);
            if (team.rank() == 0 && first + 32 < b.length) {
                carries[base / 32] = static_cast<uint64_t>(minus) << 32 | plus;
            }
        }
    }
    return Programme::first_column(b.length) + changes;
}

// Positions that differ; those that only the longer one has are among them.
template <class Team, class Token>
SMOOTHLOSS_NGRAM_HD int hamming_distance(const Team& team, const Sentence<Token>& a, const Sentence<int32_t>& b) {
    int shorter = smaller(a.length, b.length), differing = 0;
    for (int i = team.rank(); i < shorter; i += Team::kSize) differing += a.tokens[i] != b.tokens[i];
    return team.sum(differing) + larger(a.length, b.length) - shorter;
}

// The largest precision and the largest recall, of different references perhaps, as coco-caption has it.
template <class Team, class Token>
SMOOTHLOSS_NGRAM_HD double rouge_l(const Team& team, const Sentence<Token>& a, const References& r, const Span& span,
                                   double beta, uint64_t* carries) {
    double precision = 0, recall = 0;
    for (int64_t s = span.first; s < span.last; ++s) {
        Sentence<int32_t> b = reference(r, s);
        if (a.length == 0 || b.length == 0) continue;
        double common = last_element<CommonSubsequence>(team, a, b, carries);
        double p = common / a.length, q = common / b.length;
        precision = p > precision ? p : precision;
        recall = q > recall ? q : recall;
    }
    if (precision == 0 || recall == 0) return 0;
    return (1 + beta * beta) * precision * recall / (recall + beta * beta * precision);
}

// Minus the distance to the nearest reference; without any, to the empty sentence.
template <class Team, class Token>
SMOOTHLOSS_NGRAM_HD double nearest(const Team& team, const Sentence<Token>& a, const References& r, const Span& span,
                                   Alignment kind, uint64_t* carries) {
    int least = span.first < span.last ? INT32_MAX : a.length;
    for (int64_t s = span.first; s < span.last; ++s) {
        Sentence<int32_t> b = reference(r, s);
        bool hamming = kind == Alignment::hamming;
        least =
            smaller(least, hamming ? hamming_distance(team, a, b) : last_element<EditDistance>(team, a, b, carries));
    }
    return -least;
}

template <class Team, class Token>
SMOOTHLOSS_NGRAM_HD void score_alignment(const Team& team, const AlignmentArguments& a,
                                         const Sentence<Token>& candidate, int64_t number, int64_t input,
                                         uint64_t* carries) {
    Span span = span_of(a.references, input);
    double score = a.kind == Alignment::rouge_l ? rouge_l(team, candidate, a.references, span, a.beta, carries)
                                                : nearest(team, candidate, a.references, span, a.kind, carries);
    if (team.rank() == 0) a.scores[number] = score;
}

}  // namespace ngram
}  // namespace smoothloss
