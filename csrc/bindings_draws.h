// What the bindings of draws in both modules share: tuples of pointers and sizes to the arguments of common/draws.h and
// common/weights.h.
#pragma once

#include "bindings_common.h"
#include "common/edits.h"
#include "common/weights.h"

namespace smoothloss {

// (target_ptr, bytes a token, batch, width, lengths_ptr or 0); (excluded_ptr, num_flags);
// (kind, references_ptr, bytes a token, references_width, by_rank_ptr, ranks_ptr, num_substitutes_ptr, segments_ptr,
// num_tokens, set_size, width of a row); (kept_share, replaced_odds, inverse_tau);
// (tokens_ptr, bytes a token, distance_ptr, log_prob_ptr, samples)
using SentencesTuple = std::tuple<uintptr_t, int, int64_t, int64_t, uintptr_t>;
using ExcludedTuple = std::tuple<uintptr_t, int64_t>;
using PoolTuple =
    std::tuple<int, uintptr_t, int, int64_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t, int64_t>;
using TemperatureTuple = std::tuple<double, double, double>;
using SamplesTuple = std::tuple<uintptr_t, int, uintptr_t, uintptr_t, int64_t>;

inline TokenArray token_array(uintptr_t data, int bytes, const char* name) {
    require(bytes == 2 || bytes == 4 || bytes == 8,
            std::string(name) + ": got tokens of " + std::to_string(bytes) + " bytes, expected 2, 4 or 8");
    return {pointer(data), bytes};
}

inline VocabularyTable make_vocabulary(const PoolTuple& t, PoolKind kind) {
    auto [number, references, bytes, references_width, by_rank, ranks, substitutes, segments, num_tokens, set_size,
          width] = t;
    bool has_set = kind == PoolKind::vocabulary, has_rows = kind == PoolKind::similar;
    require(!(has_set || has_rows) || (num_tokens >= 1 && by_rank != 0), "pool: got no tokens");
    require(num_tokens <= INT32_MAX && set_size >= 0 && set_size <= num_tokens,
            "pool: got " + std::to_string(set_size) + " of " + std::to_string(num_tokens) + " tokens");
    require(!has_set || ranks != 0, "pool: got a null pointer for the ranks");
    require(!has_rows || (width >= 1 && substitutes != 0 && segments != 0),
            "pool: got rows of " + std::to_string(width) + " segments, or a null pointer");
    return {static_cast<const int64_t*>(pointer(by_rank)),
            static_cast<const int32_t*>(pointer(ranks)),
            static_cast<const int64_t*>(pointer(substitutes)),
            static_cast<const Segment*>(pointer(segments)),
            num_tokens,
            set_size,
            width};
}

inline DrawArguments make_draw(const SentencesTuple& sentences, const ExcludedTuple& excluded, const PoolTuple& pool,
                               const TemperatureTuple& temperature, uintptr_t seed, const SamplesTuple& out) {
    auto [target, target_bytes, batch, width, lengths] = sentences;
    auto [flags, num_flags] = excluded;
    auto [tokens, token_bytes, distance, log_prob, samples] = out;
    int kind = std::get<0>(pool);
    int64_t references_width = std::get<3>(pool);
    require(batch >= 0 && width >= 0 && references_width >= 0 && samples >= 0, "target: got a negative size");
    require(batch <= INT32_MAX && width <= INT32_MAX && batch * width <= INT32_MAX && samples <= INT32_MAX &&
                references_width <= INT32_MAX && batch * references_width <= INT32_MAX,
            "target: got more than 2^31 - 1 tokens");
    require(kind >= 0 && kind <= static_cast<int>(PoolKind::similar), "pool: got an unknown number");
    require(flags != 0 && num_flags >= 2, "excluded: got a null pointer, or fewer than two flags");
    require(seed != 0, "seed: got a null pointer");
    bool empty = batch * width == 0;
    require(empty || target != 0, "target: got a null pointer");
    require(samples == 0 || empty || tokens != 0, "tokens: got a null pointer");
    require(samples * batch == 0 || (distance != 0 && log_prob != 0), "distance, log_prob: got a null pointer");
    require(batch * references_width == 0 || kind != static_cast<int>(PoolKind::references) || std::get<1>(pool) != 0,
            "references: got a null pointer");
    auto [kept_share, replaced_odds, inverse_tau] = temperature;
    require(kept_share >= 1 && replaced_odds >= 0 && replaced_odds <= 1 && inverse_tau >= 0,
            "temperature: got odds out of their range");
    return {token_array(target, target_bytes, "target"),
            static_cast<const int64_t*>(pointer(lengths)),
            static_cast<const uint8_t*>(pointer(flags)),
            token_array(std::get<1>(pool), std::get<2>(pool), "references"),
            make_vocabulary(pool, static_cast<PoolKind>(kind)),
            static_cast<const int64_t*>(pointer(seed)),
            token_array(tokens, token_bytes, "tokens"),
            static_cast<int64_t*>(pointer(distance)),
            static_cast<float*>(pointer(log_prob)),
            static_cast<PoolKind>(kind),
            batch,
            width,
            num_flags,
            references_width,
            samples,
            kept_share,
            replaced_odds,
            inverse_tau};
}

// (max_insertions, pad, lengths_ptr, bytes a log-probability)
using EditTuple = std::tuple<int64_t, int64_t, uintptr_t, int>;

inline EditArguments make_edit(const DrawArguments& draw, const EditTuple& t) {
    auto [max_insertions, pad, lengths, log_prob_bytes] = t;
    require(draw.pool != PoolKind::similar, "pool: got similarity rows, expected a set");
    require(max_insertions >= 1 && max_insertions <= INT32_MAX && draw.width + max_insertions <= INT32_MAX,
            "max_insertions: got " + std::to_string(max_insertions) + ", expected at least 1 and below 2^31");
    bool empty = draw.samples * draw.batch == 0;
    require(empty || (draw.tokens.data && lengths != 0), "tokens, lengths: got a null pointer");
    require(log_prob_bytes == 4 || log_prob_bytes == 8,
            "log_prob: got " + std::to_string(log_prob_bytes) + " bytes, expected 4 or 8");
    return {draw, max_insertions, pad, static_cast<int64_t*>(pointer(lengths)), log_prob_bytes};
}

// (data_ptr, type code, stride of a sample, stride of an input), twice; (tau, clip, of_batch)
using SampleNumbersTuple = std::tuple<uintptr_t, int, int64_t, int64_t>;
using WeightOptionsTuple = std::tuple<double, double, bool>;

inline SampleNumbers make_sample_numbers(const SampleNumbersTuple& t, const char* name, bool are_none) {
    auto [data, type, sample_stride, input_stride] = t;
    require(type == static_cast<int>(DataType::float32) || type == static_cast<int>(DataType::float64),
            std::string(name) + ": expected float32 or float64");
    require(are_none || data != 0, std::string(name) + ": got a null pointer");
    return {pointer(data), type == static_cast<int>(DataType::float64), sample_stride, input_stride};
}

inline WeightArguments make_weights(const SampleNumbersTuple& scores, const SampleNumbersTuple& log_prob,
                                    int64_t samples, int64_t inputs, const WeightOptionsTuple& options, uintptr_t out) {
    require(samples >= 0 && inputs >= 0 && samples <= INT32_MAX && inputs <= INT32_MAX && samples * inputs <= INT32_MAX,
            "scores: got a negative size, or more than 2^31 - 1 samples");
    bool are_none = samples * inputs == 0;
    SampleNumbers s = make_sample_numbers(scores, "scores", are_none);
    SampleNumbers q = make_sample_numbers(log_prob, "log_prob", are_none);
    auto [tau, clip, of_batch] = options;
    require(tau > 0, "tau: got " + std::to_string(tau) + ", expected a positive number");
    require(clip == clip, "clip: got NaN");
    require(are_none || out != 0, "out: got a null pointer");
    return {s, q, samples, inputs, tau, clip, of_batch, s.are_double || q.are_double, pointer(out)};
}

}  // namespace smoothloss
