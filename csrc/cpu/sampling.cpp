#include "cpu/sampling.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/parallel.h"

namespace smoothloss {
namespace {

using namespace portable;

// Fewer draws than this are made sooner than a second thread is woken.
constexpr int64_t kMinDrawsPerThread = 1 << 14;

// A set of tokens in the order of their first appearance: an open hash table of their ranks.
class TokenSet {
  public:
    // Forgets all; `most` tokens are going to be added.
    void clear(int64_t most) {
        int bits = 4;
        while ((int64_t{1} << bits) < 2 * most) ++bits;
        shift_ = 64 - bits;
        ranks_.assign(size_t{1} << bits, -1);
        tokens_.clear();
    }

    void add(int64_t token) {
        int32_t& rank = slot_of(token);
        if (rank >= 0) return;
        rank = static_cast<int32_t>(tokens_.size());
        tokens_.push_back(token);
    }

    int32_t rank_of(int64_t token) { return slot_of(token); }

    const std::vector<int64_t>& tokens() const { return tokens_; }

  private:
    int32_t& slot_of(int64_t token) {
        size_t slot = static_cast<uint64_t>(token) * 0x9E3779B97F4A7C15u >> shift_;
        while (ranks_[slot] >= 0 && tokens_[static_cast<size_t>(ranks_[slot])] != token) {
            slot = (slot + 1) & (ranks_.size() - 1);
        }
        return ranks_[slot];
    }

    int shift_ = 0;
    std::vector<int32_t> ranks_;
    std::vector<int64_t> tokens_;
};

// What is known before any sample is drawn: the positions that may be replaced, field by field, and their sets.
struct Positions {
    std::vector<uint64_t> position, sentence;
    std::vector<int64_t> threshold, count, token, where;
    std::vector<int32_t> rank;
    std::vector<int64_t> sets, set_begin;  // of sentences, one set behind the other
    std::vector<double> log_normalizer;    // (batch)

    void add(uint64_t t, uint64_t b, int64_t at, int64_t own, int64_t choices, int64_t coins, int32_t own_rank) {
        position.push_back(t);
        sentence.push_back(b);
        where.push_back(at);
        token.push_back(own);
        count.push_back(choices);
        threshold.push_back(coins);
        rank.push_back(own_rank);
    }

    void fill_last_block() {
        while (position.size() % kCoinBlock != 0) add(0, 0, 0, 0, 0, 0, -1);
    }
};

// What all tokens with as many substitutes share; neighbours in a batch mostly have as many.
struct Odds {
    int64_t count = -1, threshold = 0;
    double log_normalizer = 0;

    void set(const DrawArguments& a, int64_t n) {
        if (n == count) return;
        count = n;
        threshold = coin_threshold(n, a.kept_share);
        log_normalizer = log_normalizer_of(a, n);
    }
};

void check_lengths(const DrawArguments& a) {
    for (int64_t b = 0; a.lengths && b < a.batch; ++b) {
        if (a.lengths[b] >= 0 && a.lengths[b] <= a.width) continue;
        throw std::invalid_argument("lengths[" + std::to_string(b) + "]: got " + std::to_string(a.lengths[b]) +
                                    ", expected 0 to " + std::to_string(a.width) + ", the width of target");
    }
}

template <class Function>
void for_each_replaceable(const DrawArguments& a, int64_t sentence, Function function) {
    int64_t length = length_of(a, sentence);
    for (int64_t t = 0; t < length; ++t) {
        int64_t token = read_token(a.target, sentence * a.width + t);
        if (!is_excluded(a, token)) function(t, token);
    }
}

// The positions of a sentence whose substitutes are the other tokens of a set of this size.
template <class RankOf>
void add_sentence(const DrawArguments& a, int64_t sentence, int64_t size, RankOf rank_of, Positions& out) {
    Odds outside, inside;
    outside.set(a, size);
    inside.set(a, std::max<int64_t>(size - 1, 0));
    int64_t num_inside = 0, num_outside = 0;
    for_each_replaceable(a, sentence, [&](int64_t t, int64_t token) {
        int32_t rank = rank_of(token);
        const Odds& odds = rank >= 0 ? inside : outside;
        ++(rank >= 0 ? num_inside : num_outside);
        if (odds.threshold == 0) return;
        out.add(static_cast<uint64_t>(t), static_cast<uint64_t>(sentence), sentence * a.width + t, token, odds.count,
                odds.threshold, rank);
    });
    out.log_normalizer.push_back(static_cast<double>(num_inside) * inside.log_normalizer +
                                 static_cast<double>(num_outside) * outside.log_normalizer);
}

void add_similar(const DrawArguments& a, int64_t sentence, Odds& odds, Positions& out) {
    double log_normalizer = 0;
    for_each_replaceable(a, sentence, [&](int64_t t, int64_t token) {
        if (token >= a.table.num_tokens) {
            throw std::out_of_range("target: got token " + std::to_string(token) + ", expected token < " +
                                    std::to_string(a.table.num_tokens) + ", the size of the table");
        }
        odds.set(a, a.table.num_substitutes[token]);
        log_normalizer += odds.log_normalizer;
        if (odds.threshold == 0) return;
        out.add(static_cast<uint64_t>(t), static_cast<uint64_t>(sentence), sentence * a.width + t, token, odds.count,
                odds.threshold, -1);
    });
    out.log_normalizer.push_back(log_normalizer);
}

// Calls function(sentence, size of its set, rank_of) for each sentence; the sets stand one behind the other in `sets`,
// those of the vocabulary elsewhere.
template <class Function>
void for_each_set(const DrawArguments& a, std::vector<int64_t>& sets, std::vector<int64_t>& set_begin,
                  Function function) {
    set_begin.assign(static_cast<size_t>(a.batch), 0);
    if (a.pool == PoolKind::vocabulary) {
        auto rank_of = [&](int64_t token) { return rank_in_vocabulary(a, token); };
        for (int64_t b = 0; b < a.batch; ++b) function(b, a.table.set_size, rank_of);
        return;
    }
    TokenSet set;
    auto rank_of = [&](int64_t token) { return set.rank_of(token); };
    if (a.pool == PoolKind::batch) {
        set.clear(a.batch * a.width);
        for (int64_t b = 0; b < a.batch; ++b)
            for_each_replaceable(a, b, [&](int64_t, int64_t token) { set.add(token); });
        sets = set.tokens();
    }
    for (int64_t b = 0; b < a.batch; ++b) {
        if (a.pool == PoolKind::references) {
            set.clear(a.references_width);
            for (int64_t r = 0; r < a.references_width; ++r) {
                int64_t token = read_token(a.references, b * a.references_width + r);
                if (!is_excluded(a, token)) set.add(token);
            }
            set_begin[static_cast<size_t>(b)] = static_cast<int64_t>(sets.size());
            sets.insert(sets.end(), set.tokens().begin(), set.tokens().end());
        }
        function(b, static_cast<int64_t>(set.tokens().size()), rank_of);
    }
}

void add_all(const DrawArguments& a, Positions& out) {
    if (a.pool == PoolKind::similar) {
        Odds odds;
        out.set_begin.assign(static_cast<size_t>(a.batch), 0);
        for (int64_t b = 0; b < a.batch; ++b) add_similar(a, b, odds, out);
    } else {
        for_each_set(a, out.sets, out.set_begin,
                     [&](int64_t b, int64_t size, auto rank_of) { add_sentence(a, b, size, rank_of, out); });
    }
    out.fill_last_block();
}

class SampleDraw {
  public:
    SampleDraw(const DrawArguments& a, const DrawKernels& kernels, const Positions& positions)
        : a_(a), kernels_(kernels), p_(positions), seed_(static_cast<uint64_t>(*a.seed)), ratio_(p_.set_begin.size()) {}

    void draw(int64_t sample) {
        copy_target(sample);
        int64_t* distance = a_.distance + sample * a_.batch;
        std::fill(distance, distance + a_.batch, 0);
        std::fill(ratio_.begin(), ratio_.end(), 0.0);
        Coins coins{p_.position.data(), p_.sentence.data(), p_.threshold.data()};
        for (size_t begin = 0; begin < p_.position.size(); begin += kCoinBlock) {
            int64_t fallen = kernels_.throw_coins(coins, static_cast<int64_t>(begin), seed_,
                                                  static_cast<uint32_t>(sample), fallen_, number_);
            for (int64_t k = 0; k < fallen; ++k) ++distance[p_.sentence[at(k)]];
            a_.pool == PoolKind::similar ? replace_similar(sample, fallen) : replace(sample, fallen);
        }
        for (int64_t b = 0; b < a_.batch; ++b) {
            size_t s = static_cast<size_t>(b);
            a_.log_prob[sample * a_.batch + b] = log_prob_of(a_, distance[b], ratio_[s], p_.log_normalizer[s]);
        }
    }

  private:
    size_t at(int64_t k) const { return static_cast<size_t>(fallen_[k]); }

    void copy_target(int64_t sample) {
        int64_t size = a_.batch * a_.width;
        if (a_.tokens.bytes == a_.target.bytes) {
            char* out = static_cast<char*>(a_.tokens.data) + sample * size * a_.tokens.bytes;
            if (size) std::memcpy(out, a_.target.data, static_cast<size_t>(size * a_.tokens.bytes));
            return;
        }
        for (int64_t n = 0; n < size; ++n) write_token(a_.tokens, sample * size + n, read_token(a_.target, n));
    }

    void replace(int64_t sample, int64_t fallen) {
        int64_t begin = sample * a_.batch * a_.width;
        const int64_t* sets = a_.pool == PoolKind::vocabulary ? a_.table.by_rank : p_.sets.data();
        for (int64_t k = 0; k < fallen; ++k) {
            size_t i = at(k);
            int64_t place = substitute_place(number_[k], p_.count[i], p_.rank[i]);
            write_token(a_.tokens, begin + p_.where[i], sets[p_.set_begin[p_.sentence[i]] + place]);
        }
    }

    // Rows of a large table are seldom in the cache: those of a block are asked for together.
    void replace_similar(int64_t sample, int64_t fallen) {
        int64_t begin = sample * a_.batch * a_.width;
        const Segment* slots[kCoinBlock];
        for (int64_t k = 0; k < fallen; ++k) {
            slots[k] = similar_slot(a_.table, p_.token[at(k)], number_[k]);
            __builtin_prefetch(slots[k]);
        }
        for (int64_t k = 0; k < fallen; ++k) {
            size_t i = at(k);
            Words words = philox(seed_, static_cast<uint32_t>(p_.position[i]), static_cast<uint32_t>(p_.sentence[i]),
                                 static_cast<uint32_t>(sample), kSimilar);
            const Segment* segment = similar_segment(slots[k], words);
            write_token(a_.tokens, begin + p_.where[i], similar_token(a_.table, *segment, words));
            ratio_[p_.sentence[i]] += segment->log_ratio;
        }
    }

    const DrawArguments& a_;
    const DrawKernels& kernels_;
    const Positions& p_;
    uint64_t seed_;
    std::vector<double> ratio_;
    int64_t fallen_[kCoinBlock];
    uint64_t number_[kCoinBlock];
};

// All ground truths of a draw by edit distance. Those of as many tokens and as large sets share their priors.
class EditSentences {
  public:
    explicit EditSentences(const EditArguments& a)
        : a_(a), memory_(static_cast<size_t>(4 * a.draw.batch * a.draw.width)) {
        std::vector<int64_t> set_begin;
        for_each_set(a.draw, sets_, set_begin, [&](int64_t b, int64_t size, auto rank_of) { add(b, size, rank_of); });
        for (EditSentence& s : sentences_) {
            bool of_vocabulary = a.draw.pool == PoolKind::vocabulary;
            s.set = of_vocabulary ? a.draw.table.by_rank : sets_.data() + set_begin[static_cast<size_t>(s.number)];
        }
    }

    const EditSentence& operator[](int64_t sentence) const { return sentences_[static_cast<size_t>(sentence)]; }

  private:
    struct Prior {
        std::vector<int64_t> shares;
        double log_normalizer = 0;
    };

    template <class RankOf>
    void add(int64_t sentence, int64_t size, RankOf rank_of) {
        const DrawArguments& d = a_.draw;
        int64_t* memory = memory_.data() + 4 * sentence * d.width;
        double* weights = reinterpret_cast<double*>(memory + 3 * d.width);
        EditSentence s{sentence,         length_of(d, sentence), size,    0,       nullptr, memory,
                       memory + d.width, memory + 2 * d.width,   weights, nullptr, 0};
        for (int64_t t = 0; t < s.length; ++t) {
            int64_t token = read_token(d.target, sentence * d.width + t);
            set_token(a_, s, t, token, rank_of(token));
        }
        s.free = count_free(s);
        Prior& prior = prior_of(s);
        s.shares = prior.shares.data();
        s.log_normalizer = prior.log_normalizer;
        sentences_.push_back(s);
    }

    Prior& prior_of(const EditSentence& s) {
        Prior& prior = priors_[{s.length, s.free, s.set_size}];
        if (prior.shares.empty()) {
            prior.shares.resize(static_cast<size_t>(edit_cells(s.free, a_.max_insertions)));
            double odds = edit_odds(a_, s.set_size);
            prior.log_normalizer = edit_prior(s.length, s.free, a_.max_insertions, odds, prior.shares.data());
        }
        return prior;
    }

    const EditArguments& a_;
    std::vector<int64_t> memory_, sets_;
    std::vector<EditSentence> sentences_;
    std::map<std::tuple<int64_t, int64_t, int64_t>, Prior> priors_;
};

}  // namespace

void draw_hamming(const DrawArguments& a, const DrawKernels& kernels, int threads) {
    check_lengths(a);
    Positions positions;
    add_all(a, positions);
    int64_t draws = a.samples * static_cast<int64_t>(positions.position.size());
    int workers = static_cast<int>(std::clamp<int64_t>(draws / kMinDrawsPerThread, 1, threads));
    share_out(a.samples, even_share(a.samples, workers), workers, [&](Chunks& chunks, int) {
        SampleDraw draw(a, kernels, positions);
        chunks.for_each([&](int64_t begin, int64_t end) {
            for (int64_t l = begin; l < end; ++l) draw.draw(l);
        });
    });
}

void draw_edit(const EditArguments& a, const DrawKernels& kernels, int threads) {
    check_lengths(a.draw);
    EditSentences sentences(a);
    int64_t count = a.draw.samples * a.draw.batch;
    int64_t sample_words = edit_sample_words(a.draw.width, a.max_insertions);
    int workers = static_cast<int>(std::clamp<int64_t>(count * sample_words / kMinDrawsPerThread, 1, threads));
    uint64_t seed = static_cast<uint64_t>(*a.draw.seed);
    auto draw_one = [&](int64_t i, EditScratch& scratch) {
        uint32_t sentence = static_cast<uint32_t>(i / a.draw.samples);
        EditDraw draw{a, sentences[sentence], scratch, seed, static_cast<uint32_t>(i % a.draw.samples)};
        int64_t pair = draw.draw_pair();
        if (draw.needs_keys(pair)) {
            kernels.coins(seed, sentence, draw.sample, kEditReplaced, draw.s.length, scratch.keys.data);
        }
        draw.run(pair);
    };
    share_out(count, 8, workers, [&](Chunks& chunks, int) {
        std::vector<int64_t> memory(static_cast<size_t>(sample_words));
        EditScratch scratch = edit_scratch(memory.data(), 1, a.draw.width, a.max_insertions);
        chunks.for_each([&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) draw_one(i, scratch);
        });
    });
}

}  // namespace smoothloss
