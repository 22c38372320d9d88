// Draws by edit distance: the ground truths, how many of their tokens are replaced and how many are inserted, and one
// sample, shared by CPU and CUDA.
//
// Which script of edits is drawn is decided in integers, from numbers that round alike everywhere: products, quotients
// and powers of two, never a sum. The definition is smoothloss/sampling/_edit_reference.py.
#pragma once

#include "common/draws.h"

namespace smoothloss {

struct EditArguments {
    DrawArguments draw;  // its tokens: (samples, batch, width + max_insertions)
    int64_t max_insertions;
    int64_t pad;
    int64_t* lengths;    // out: (samples, batch)
    int log_prob_bytes;  // 4 or 8, of draw.log_prob
};

// A ground truth. The arrays have one element for each of its tokens, `shares` one for each pair of numbers.
struct EditSentence {
    int64_t number, length, set_size;
    int64_t free;  // tokens that may be replaced
    const int64_t* set;
    int64_t* tokens;
    int64_t* ranks;    // in the set, -1: none
    int64_t* choices;  // how many ways there are to replace the token, deletion included; 0: it must stay
    double* weights;   // of each of these ways
    int64_t* shares;   // (length + 1, max_insertions + 1), cumulative: replaced and inserted tokens
    double log_normalizer;
};

namespace SMOOTHLOSS_ISA {

constexpr double kLog2 = 0.693147180559945309417;
constexpr int64_t kAllShares = int64_t{1} << 62;

// Numbers `stride` apart: on a GPU those of neighbouring threads are neighbours.
template <class T>
struct Strided {
    T* data;
    int64_t stride;

    SMOOTHLOSS_HD T& operator[](int64_t i) const { return data[i * stride]; }
};

// What drawing a sample needs: its words, whether they are in the pool, the weights of beginnings of scripts, the keys
// of tokens and the gaps of insertions.
struct EditScratch {
    Strided<int64_t> words;
    Strided<double> pooled, cells;
    Strided<int64_t> keys, gaps;
};

SMOOTHLOSS_HD int64_t edit_cells(int64_t length, int64_t max_insertions) {
    return (length + 1) * (max_insertions + 1);
}

// 64-bit words of an EditScratch, and of the arrays of a sentence.
SMOOTHLOSS_HD int64_t edit_sample_words(int64_t width, int64_t max_insertions) {
    return edit_cells(width, max_insertions) + 3 * (width + max_insertions);
}

SMOOTHLOSS_HD int64_t edit_sentence_words(int64_t width, int64_t max_insertions) {
    return edit_cells(width, max_insertions) + 4 * width;
}

SMOOTHLOSS_HD EditScratch edit_scratch(int64_t* memory, int64_t stride, int64_t width, int64_t max_insertions) {
    int64_t words = (width + max_insertions) * stride;
    double* numbers = reinterpret_cast<double*>(memory + words);
    int64_t* rest = memory + 2 * words + edit_cells(width, max_insertions) * stride;
    return {{memory, stride},
            {numbers, stride},
            {numbers + words, stride},
            {rest, stride},
            {rest + width * stride, stride}};
}

SMOOTHLOSS_HD double edit_odds(const EditArguments& a, int64_t set_size) {
    return static_cast<double>(set_size) * a.draw.replaced_odds;
}

SMOOTHLOSS_HD void set_token(const EditArguments& a, const EditSentence& s, int64_t t, int64_t token, int64_t rank) {
    int64_t choices = is_excluded(a.draw, token) ? 0 : s.set_size - (rank >= 0) + 1;
    s.tokens[t] = token;
    s.ranks[t] = rank;
    s.choices[t] = choices;
    s.weights[t] = choices ? edit_odds(a, s.set_size) / static_cast<double>(choices) : 0.0;
}

// mantissa * 2^exponent, which never overflows: the mantissa is 0 or from 1/2 to 1.
struct Scaled {
    double mantissa;
    int64_t exponent;

    SMOOTHLOSS_HD Scaled times(int64_t numerator, int64_t denominator, double odds) const {
        int shift;
        double ratio = static_cast<double>(numerator) / static_cast<double>(denominator);
        double product = ::frexp(mantissa * ratio * odds, &shift);
        return {product, exponent + shift};
    }
};

// The weights C(free, s) C(length - s + k, k) odds^(s + k) of all pairs, k the faster.
template <class Function>
SMOOTHLOSS_HD void for_each_pair(int64_t length, int64_t free, int64_t max_insertions, double odds, Function function) {
    Scaled row{0.5, 1};
    for (int64_t s = 0; s <= free; ++s) {
        if (s > 0) row = row.times(free - s + 1, s, odds);
        Scaled weight = row;
        for (int64_t k = 0; k <= max_insertions; ++k) {
            if (k > 0) weight = weight.times(length - s + k, k, odds);
            function(weight);
        }
    }
}

// Writes the cumulative shares of all pairs, in integers of 62 bits, and returns the logarithm of the weights' sum.
SMOOTHLOSS_HD double edit_prior(int64_t length, int64_t free, int64_t max_insertions, double odds, int64_t* shares) {
    int64_t largest = 0;
    for_each_pair(length, free, max_insertions, odds,
                  [&](const Scaled& w) { largest = w.exponent > largest ? w.exponent : largest; });
    double each = static_cast<double>(kAllShares) / static_cast<double>(edit_cells(length, max_insertions));
    int64_t total = 0;
    double sum = 0;
    for_each_pair(length, free, max_insertions, odds, [&](const Scaled& w) {
        int64_t below = largest - w.exponent;
        if (below < 1100) sum += ::ldexp(w.mantissa, -static_cast<int>(below));
        total += static_cast<int64_t>(w.mantissa * each) >> (below < 63 ? below : 63);
        *shares++ = total;
    });
    return ::log(sum) + static_cast<double>(largest) * kLog2;
}

SMOOTHLOSS_HD int64_t count_free(const EditSentence& s) {
    int64_t free = 0;
    for (int64_t t = 0; t < s.length; ++t) free += s.choices[t] > 0;
    return free;
}

SMOOTHLOSS_HD void set_prior(const EditArguments& a, EditSentence& s) {
    s.log_normalizer = edit_prior(s.length, s.free, a.max_insertions, edit_odds(a, s.set_size), s.shares);
}

// One of `total` <= 2^62 shares, all alike to 2^-62: number * total / 2^64 without the products' last bits.
SMOOTHLOSS_HD int64_t choose_share(uint64_t number, int64_t total) {
    uint64_t high = static_cast<uint64_t>(total) >> 32, low = static_cast<uint64_t>(total) & 0xffffffffu;
    uint64_t upper = number >> 32, lower = number & 0xffffffffu;
    return static_cast<int64_t>(upper * high + (upper * low >> 32) + (lower * high >> 32));
}

// One sample of a sentence.
struct EditDraw {
    const EditArguments& a;
    const EditSentence& s;
    EditScratch scratch;
    uint64_t seed;
    uint32_t sample;

    SMOOTHLOSS_HD Words words_of(int64_t position, Purpose purpose) const {
        return philox(seed, static_cast<uint32_t>(position), static_cast<uint32_t>(s.number), sample, purpose);
    }

    // The first pair whose cumulative share exceeds the number.
    SMOOTHLOSS_HD int64_t draw_pair() const {
        int64_t end = (s.free + 1) * (a.max_insertions + 1), begin = 0;
        int64_t share = choose_share(number(words_of(0, kEditCounts)), s.shares[end - 1]);
        while (begin < end) {
            int64_t middle = (begin + end) / 2;
            if (s.shares[middle] > share) {
                end = middle;
            } else {
                begin = middle + 1;
            }
        }
        return begin;
    }

    // What is replaced is chosen by keys, which nobody needs where nothing is.
    SMOOTHLOSS_HD bool needs_keys(int64_t pair) const { return pair > a.max_insertions; }

    SMOOTHLOSS_HD void draw_keys() const {
        for (int64_t t = 0; t < s.length; ++t) scratch.keys[t] = coin(words_of(t, kEditReplaced));
    }

    // The largest key of those that are replaced: the smallest keys are. Sets `chosen`: more than `count` of them
    // where keys are equal.
    SMOOTHLOSS_HD int64_t draw_replaced(int64_t count, int64_t* chosen) const {
        int64_t last = -1;
        *chosen = 0;
        while (*chosen < count) {
            int64_t next = INT64_MAX, equal = 0;
            for (int64_t t = 0; t < s.length; ++t) {
                int64_t key = scratch.keys[t];
                if (s.choices[t] == 0 || key <= last || key > next) continue;
                equal = key == next ? equal + 1 : 1;
                next = key;
            }
            last = next;
            *chosen += equal;
        }
        return last;
    }

    // Polya's urn: a gap is one of `size` or, with the weight of one each, that of an earlier insertion.
    SMOOTHLOSS_HD void draw_gaps(int64_t size, int64_t count) const {
        for (int64_t i = 0; i < count; ++i) {
            int64_t gap = choose(number(words_of(i, kEditGap)), size + i);
            scratch.gaps[i] = gap < size ? gap : scratch.gaps[gap - size];
        }
    }

    SMOOTHLOSS_HD void put(int64_t at, int64_t token, bool is_pooled) const {
        scratch.words[at] = token;
        scratch.pooled[at] = is_pooled;
    }

    SMOOTHLOSS_HD int64_t insert(int64_t at, int64_t gap, int64_t count) const {
        for (int64_t i = 0; i < count; ++i) {
            if (scratch.gaps[i] != gap) continue;
            put(at, s.set[choose(number(words_of(at, kEditInserted)), s.set_size)], true);
            ++at;
        }
        return at;
    }

    // Writes the words of the sample and returns how many they are.
    SMOOTHLOSS_HD int64_t edit(int64_t num_replaced, int64_t num_inserted) const {
        int64_t chosen, last = draw_replaced(num_replaced, &chosen), at = 0, gap = 0;
        draw_gaps(s.length - chosen + 1, num_inserted);
        for (int64_t t = 0; t < s.length; ++t) {
            if (num_replaced && s.choices[t] > 0 && scratch.keys[t] <= last) {
                int64_t choice = choose(number(words_of(t, kEditChoice)), s.choices[t]);
                if (choice == s.choices[t] - 1) continue;  // deleted
                put(at++, s.set[choice + (s.ranks[t] >= 0 && choice >= s.ranks[t])], true);
            } else {
                at = insert(at, gap++, num_inserted);
                put(at++, s.tokens[t], s.ranks[t] >= 0);
            }
        }
        return insert(at, gap, num_inserted);
    }

    // The weights of all beginnings of scripts, by dynamic programming over the sentence's tokens. A cell (r, k) stands
    // for r words that are kept or substitutes and k insertions; `cells` are those that do not end with an insertion,
    // since behind one there may only be a token that is kept, or the end. Of the rows only those that can still become
    // the whole sample.
    SMOOTHLOSS_HD double log_weight(int64_t count) const {
        int64_t columns = a.max_insertions + 1;
        int64_t rows = (s.length < count ? s.length : count) + 1;
        for (int64_t i = 0; i < rows * columns; ++i) scratch.cells[i] = 0;
        scratch.cells[0] = 1;
        double log_scale = 0;
        for (int64_t t = 0; t < s.length; ++t) {
            int64_t least = count - a.max_insertions - (s.length - t - 1);
            int64_t most = t + 1 < count ? t + 1 : count;
            if (least < 0) least = 0;
            double largest = 0;
            for (int64_t r = most; r >= least; --r) {
                double of_row = advance(t, r, count);
                largest = of_row > largest ? of_row : largest;
            }
            log_scale += rescale(largest, least * columns, (most + 1) * columns);
        }
        double sum = 0;
        int64_t least = count - a.max_insertions;
        for (int64_t r = least < 0 ? 0 : least; r < rows; ++r) sum += finished(r, count);
        return ::log(sum) + log_scale;
    }

    // Row r behind token t, from itself and the row before it; returns its largest cell.
    SMOOTHLOSS_HD double advance(int64_t t, int64_t r, int64_t count) const {
        int64_t columns = a.max_insertions + 1, end = count - r < a.max_insertions ? count - r : a.max_insertions;
        int64_t token = s.tokens[t], row = r * columns, before = row - columns;
        double weight = s.weights[t], largest = 0, any = 0;  // any: of those too that end with an insertion
        for (int64_t k = 0; k <= end; ++k) {
            double value = scratch.cells[row + k] * weight;
            if (r > 0) {
                int64_t word = r + k - 1;
                double settled = scratch.cells[before + k];
                any = k > 0 ? settled + any * (a.draw.replaced_odds * scratch.pooled[word - 1]) : settled;
                double replaced = settled * (weight * scratch.pooled[word]);
                value += scratch.words[word] == token ? any : replaced;
            }
            scratch.cells[row + k] = value;
            largest = value > largest ? value : largest;
        }
        return largest;
    }

    // What row r contributes to whole samples.
    SMOOTHLOSS_HD double finished(int64_t r, int64_t count) const {
        int64_t columns = a.max_insertions + 1;
        double any = scratch.cells[r * columns];
        for (int64_t k = 1; k <= count - r; ++k) {
            double inserted = a.draw.replaced_odds * scratch.pooled[r + k - 1];
            any = scratch.cells[r * columns + k] + any * inserted;
        }
        return any;
    }

    // Brings cells back where they are about to overflow or to vanish. Returns the logarithm of what they lost.
    SMOOTHLOSS_HD double rescale(double largest, int64_t begin, int64_t end) const {
        int exponent;
        ::frexp(largest, &exponent);
        if (exponent >= -256 && exponent <= 256) return 0;
        int shift = exponent < -1000 ? -1000 : exponent;
        double factor = ::ldexp(1.0, -shift);
        for (int64_t i = begin; i < end; ++i) scratch.cells[i] *= factor;
        return shift * kLog2;
    }

    // The words, then the ground truth's own tail, then padding.
    SMOOTHLOSS_HD void write_tokens(int64_t sequence, int64_t count) const {
        int64_t width = a.draw.width + a.max_insertions, begin = sequence * width;
        for (int64_t i = 0; i < count; ++i) write_token(a.draw.tokens, begin + i, scratch.words[i]);
        for (int64_t i = count; i < width; ++i) {
            int64_t source = s.length + i - count;
            bool is_tail = source < a.draw.width;
            int64_t token = is_tail ? read_token(a.draw.target, s.number * a.draw.width + source) : a.pad;
            write_token(a.draw.tokens, begin + i, token);
        }
    }

    // Draws the sample of this pair, once there are its keys.
    SMOOTHLOSS_HD void run(int64_t pair) const {
        int64_t columns = a.max_insertions + 1;
        int64_t num_replaced = pair / columns, num_inserted = pair - num_replaced * columns;
        int64_t count = edit(num_replaced, num_inserted), sequence = sample * a.draw.batch + s.number;
        write_tokens(sequence, count);
        a.lengths[sequence] = count;
        a.draw.distance[sequence] = num_replaced + num_inserted;
        double log_prob = log_weight(count) - s.log_normalizer;
        if (a.log_prob_bytes == 8) {
            static_cast<double*>(static_cast<void*>(a.draw.log_prob))[sequence] = log_prob;
        } else {
            a.draw.log_prob[sequence] = static_cast<float>(log_prob);
        }
    }
};

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
