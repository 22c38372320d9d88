// What the reward bindings of both modules share: tuples of pointers and sizes to the arguments of csrc/ngram, and the
// signatures of what they define.
#pragma once

#include "bindings_common.h"
#include "ngram/arguments.h"

namespace smoothloss {
namespace ngram {

// (tokens_ptr, are_int64, lengths_ptr, whether there is one for each input, count, width); (tokens_ptr, offsets_ptr,
// spans_ptr, num_tokens, num_sentences, inputs); (slots_ptr, num_slots, log_df_ptr, max_documents, log_documents)
using RewardCandidatesTuple = std::tuple<uintptr_t, bool, uintptr_t, bool, int64_t, int64_t>;
using ReferencesTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t, int64_t>;
using FrequenciesTuple = std::tuple<uintptr_t, int64_t, uintptr_t, int64_t, double>;

inline References make_references(const ReferencesTuple& t) {
    auto [tokens, offsets, spans, num_tokens, num_sentences, inputs] = t;
    require(num_tokens >= 0 && num_sentences >= 0 && inputs >= 0, "references: got a negative size");
    require(num_tokens == 0 || tokens != 0, "references: got a null pointer for the tokens");
    require(num_sentences == 0 || offsets != 0, "references: got a null pointer for the offsets");
    require(inputs == 0 || spans != 0, "references: got a null pointer for the spans");
    return {static_cast<const int32_t*>(pointer(tokens)),
            static_cast<const int64_t*>(pointer(offsets)),
            static_cast<const int64_t*>(pointer(spans)),
            num_tokens,
            num_sentences,
            inputs};
}

inline Candidates make_candidates(const RewardCandidatesTuple& t, const References& references) {
    auto [tokens, are_int64, lengths, are_of_inputs, count, width] = t;
    require(count >= 0 && width >= 0, "candidates: got a negative size");
    require(width <= kMaxLength, "candidates: got " + std::to_string(width) + " positions, expected at most 2^30");
    require(count == 0 || (lengths != 0 && (width == 0 || tokens != 0)), "candidates: got a null pointer");
    require(count == 0 || (references.inputs > 0 && count % references.inputs == 0),
            "candidates: got " + std::to_string(count) + ", expected a multiple of the " +
                std::to_string(references.inputs) + " inputs that have references");
    return {pointer(tokens), are_int64, static_cast<const int64_t*>(pointer(lengths)), are_of_inputs, count, width};
}

inline Frequencies make_frequencies(const FrequenciesTuple& t) {
    auto [slots, num_slots, log_df, max_documents, log_documents] = t;
    require(slots != 0 && log_df != 0, "frequencies: got a null pointer");
    require(num_slots > 0 && (num_slots & (num_slots - 1)) == 0,
            "frequencies: got " + std::to_string(num_slots) + " slots, expected a power of two");
    require(max_documents >= 0 && max_documents < UINT32_MAX,
            "frequencies: got " + std::to_string(max_documents) + " documents");
    return {static_cast<const Slot*>(pointer(slots)), static_cast<const double*>(pointer(log_df)),
            static_cast<uint64_t>(num_slots - 1), static_cast<uint32_t>(max_documents), log_documents};
}

inline BleuArguments make_bleu(const RewardCandidatesTuple& candidates, const ReferencesTuple& references, int order,
                               int smoothing, double k, bool effective_order, uintptr_t scores, uintptr_t statistics) {
    References r = make_references(references);
    require(order >= 1 && order <= kMaxOrder,
            "order: got " + std::to_string(order) + ", expected 1 to " + std::to_string(kMaxOrder));
    require(smoothing >= 0 && smoothing <= static_cast<int>(Smoothing::coco), "smoothing: got an unknown number");
    return {make_candidates(candidates, r),
            r,
            order,
            static_cast<Smoothing>(smoothing),
            k,
            effective_order,
            static_cast<double*>(pointer(scores)),
            static_cast<int64_t*>(pointer(statistics))};
}

inline CiderArguments make_cider(const RewardCandidatesTuple& candidates, const ReferencesTuple& references,
                                 const FrequenciesTuple& frequencies, uintptr_t norms, bool is_cider_d, double sigma,
                                 uintptr_t scratch, uintptr_t scores) {
    References r = make_references(references);
    Candidates c = make_candidates(candidates, r);
    require(sigma > 0, "sigma: got " + std::to_string(sigma) + ", expected a positive number");
    require(r.num_sentences == 0 || norms != 0, "norms: got a null pointer");
    require(c.count == 0 || scores != 0, "scores: got a null pointer");
    return {c,
            r,
            make_frequencies(frequencies),
            static_cast<const double*>(pointer(norms)),
            is_cider_d,
            sigma,
            static_cast<CiderTerm*>(pointer(scratch)),
            static_cast<double*>(pointer(scores))};
}

inline CiderNormArguments make_cider_norms(const ReferencesTuple& references, const FrequenciesTuple& frequencies,
                                           uintptr_t norms) {
    References r = make_references(references);
    require(r.num_sentences == 0 || norms != 0, "norms: got a null pointer");
    return {r, make_frequencies(frequencies), static_cast<double*>(pointer(norms))};
}

inline AlignmentArguments make_alignment(const RewardCandidatesTuple& candidates, const ReferencesTuple& references,
                                         int kind, double beta, uintptr_t scratch, uintptr_t scores) {
    References r = make_references(references);
    Candidates c = make_candidates(candidates, r);
    require(kind >= 0 && kind <= static_cast<int>(Alignment::edit_distance), "kind: got an unknown number");
    require(c.count == 0 || scores != 0, "scores: got a null pointer");
    return {c,
            r,
            static_cast<Alignment>(kind),
            beta,
            static_cast<uint64_t*>(pointer(scratch)),
            static_cast<double*>(pointer(scores))};
}

// `Device::score(arguments, where...)` runs the kernel for each kind of arguments; `Where` says on what, and comes
// last.
template <class Device, class... Where>
void define_rewards(py::module_& m) {
    m.def("sentence_bleu",
          [](const RewardCandidatesTuple& candidates, const ReferencesTuple& references, int order, int smoothing,
             double k, bool effective_order, uintptr_t scores, uintptr_t statistics, Where... where) {
              Device::score(make_bleu(candidates, references, order, smoothing, k, effective_order, scores, statistics),
                            where...);
          });
    m.def("cider", [](const RewardCandidatesTuple& candidates, const ReferencesTuple& references,
                      const FrequenciesTuple& frequencies, uintptr_t norms, bool is_cider_d, double sigma,
                      uintptr_t scratch, uintptr_t scores, Where... where) {
        Device::score(make_cider(candidates, references, frequencies, norms, is_cider_d, sigma, scratch, scores),
                      where...);
    });
    m.def("cider_norms",
          [](const ReferencesTuple& references, const FrequenciesTuple& frequencies, uintptr_t norms, Where... where) {
              Device::score(make_cider_norms(references, frequencies, norms), where...);
          });
    m.def("alignment", [](const RewardCandidatesTuple& candidates, const ReferencesTuple& references, int kind,
                          double beta, uintptr_t scratch, uintptr_t scores, Where... where) {
        Device::score(make_alignment(candidates, references, kind, beta, scratch, scores), where...);
    });
}

}  // namespace ngram
}  // namespace smoothloss
