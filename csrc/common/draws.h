// Draws by Hamming distance: what a kernel is called with, and one position of a draw, shared by CPU and CUDA.
//
// A position is replaced where its coin falls, by one of the tokens of its pool other than its own. A pool is a set of
// tokens that are alike, one for all sentences or one for each, or the rows of a similarity table. The definition is
// smoothloss/sampling/_hamming_reference.py.
#pragma once

#include <cstdint>

#include "common/philox.h"

namespace smoothloss {

// Integers of 2, 4 or 8 bytes.
struct TokenArray {
    void* data;
    int bytes;
};

enum class PoolKind : int { vocabulary = 0, batch = 1, references = 2, similar = 3 };

// What a draw needs of a segment side by side: a row of a large table is seldom in the cache.
struct Segment {
    int64_t threshold;     // of a coin below which the slot's number is the segment's own
    int32_t other, first;  // the slot's other segment less its own; the first rank
    int64_t length;        // tokens
    double log_ratio;      // log(substitutes * probability of a token)
};
static_assert(sizeof(Segment) == 4 * sizeof(double));

// Of the vocabulary: its set, or the rows of a similarity table, W segments of equally likely tokens each. What the
// fields hold is said in smoothloss/sampling/segments.py.
struct VocabularyTable {
    const int64_t* by_rank;          // the tokens that may be drawn
    const int32_t* ranks;            // (V), the rank of each token, -1: none; of the set alone
    const int64_t* num_substitutes;  // (V); of the rows alone
    const Segment* segments;         // (V, W); of the rows alone
    int64_t num_tokens, set_size, width;
};

struct DrawArguments {
    TokenArray target;        // (batch, width)
    const int64_t* lengths;   // (batch), or null: all of the width
    const uint8_t* excluded;  // (num_flags): negative tokens, token 0, 1, ..., and all tokens beyond
    TokenArray references;    // (batch, references_width)
    VocabularyTable table;
    const int64_t* seed;  // one
    TokenArray tokens;    // out: (samples, batch, width)
    int64_t* distance;    // out: (samples, batch)
    float* log_prob;      // out: (samples, batch)
    PoolKind pool;
    int64_t batch, width, num_flags, references_width, samples;
    double kept_share;     // e^(1/tau), the odds of keeping a token against each substitute
    double replaced_odds;  // e^(-1/tau)
    double inverse_tau;
};

namespace SMOOTHLOSS_ISA {

SMOOTHLOSS_HD int64_t read_token(const TokenArray& tokens, int64_t at) {
    if (tokens.bytes == 8) return static_cast<const int64_t*>(tokens.data)[at];
    if (tokens.bytes == 4) return static_cast<const int32_t*>(tokens.data)[at];
    return static_cast<const int16_t*>(tokens.data)[at];
}

SMOOTHLOSS_HD void write_token(const TokenArray& tokens, int64_t at, int64_t token) {
    if (tokens.bytes == 8) {
        static_cast<int64_t*>(tokens.data)[at] = token;
    } else if (tokens.bytes == 4) {
        static_cast<int32_t*>(tokens.data)[at] = static_cast<int32_t>(token);
    } else {
        static_cast<int16_t*>(tokens.data)[at] = static_cast<int16_t>(token);
    }
}

// Which tokens are neither replaced nor drawn.
SMOOTHLOSS_HD bool is_excluded(const DrawArguments& a, int64_t token) {
    int64_t last = a.num_flags - 1;
    int64_t flag = token < 0 ? 0 : token >= last ? last : token + 1;
    return a.excluded[flag] != 0;
}

SMOOTHLOSS_HD int64_t length_of(const DrawArguments& a, int64_t sentence) {
    if (!a.lengths) return a.width;
    int64_t length = a.lengths[sentence];
    return length < 0 ? 0 : length > a.width ? a.width : length;
}

// The sets whose tokens are drawn: where a token stands in its sentence's, or -1 where it does not.
SMOOTHLOSS_HD int32_t rank_in_vocabulary(const DrawArguments& a, int64_t token) {
    return token >= 0 && token < a.table.num_tokens ? a.table.ranks[token] : -1;
}

// The place in a set of the substitute with this number, for a token of this rank: the token itself is stepped over.
SMOOTHLOSS_HD int64_t substitute_place(uint64_t number, int64_t count, int32_t rank) {
    int64_t place = choose(number, count);
    return place + (rank >= 0 && place >= rank);
}

// The slot of the row's alias table that a number falls into.
SMOOTHLOSS_HD const Segment* similar_slot(const VocabularyTable& table, int64_t token, uint64_t number) {
    return table.segments + token * table.width + choose(number, table.width);
}

// The segment of the slot, by a coin of its own.
SMOOTHLOSS_HD const Segment* similar_segment(const Segment* slot, const Words& words) {
    return coin(words) < slot->threshold ? slot : slot + slot->other;
}

SMOOTHLOSS_HD int64_t similar_token(const VocabularyTable& table, const Segment& segment, const Words& words) {
    return table.by_rank[segment.first + choose(number(words), segment.length)];
}

// log q of a sample: `ratio` are the log ratios of its substitutes. No replacement costs nothing, even where 1/tau is
// inf.
SMOOTHLOSS_HD float log_prob_of(const DrawArguments& a, int64_t distance, double ratio, double log_normalizer) {
    double cost = distance > 0 ? static_cast<double>(distance) * a.inverse_tau : 0.0;
    return static_cast<float>(ratio - cost - log_normalizer);
}

SMOOTHLOSS_HD double log_normalizer_of(const DrawArguments& a, int64_t count) {
    return ::log1p(static_cast<double>(count) * a.replaced_odds);
}

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
