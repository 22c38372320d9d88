#include "bindings_cpu_rewards.h"

#include <pybind11/stl.h>

#include "bindings_rewards.h"
#include "cpu/rewards.h"
#include "ngram/document_counter.h"
#include "ngram/matches.h"

namespace smoothloss {
namespace {

using namespace ngram;

[[noreturn]] void refuse(const char* what, int64_t first, int64_t last, const char* of, int64_t number, int64_t end) {
    throw std::invalid_argument(std::string("references: got the ") + what + " " + std::to_string(first) + " .. " +
                                std::to_string(last) + " for " + of + " " + std::to_string(number) +
                                ", expected an interval within 0 .. " + std::to_string(end));
}

// What is read is inside: the spans of all inputs, and the offsets of the sentences that these name.
void check(const References& r) {
    for (int64_t b = 0; b < r.inputs; ++b) {
        int64_t first = r.spans[2 * b], last = r.spans[2 * b + 1];
        bool fits = 0 <= first && first <= last && last <= r.num_sentences;
        if (!fits) refuse("sentences", first, last, "input", b, r.num_sentences);
        for (int64_t s = first; s < last; ++s) {
            int64_t begin = r.offsets[s], end = r.offsets[s + 1];
            if (!(0 <= begin && begin <= end && end <= r.num_tokens)) {
                refuse("tokens", begin, end, "sentence", s, r.num_tokens);
            }
            if (end - begin > kMaxLength) refuse("tokens", begin, end, "sentence", s, begin + kMaxLength);
        }
    }
}

void check_all_sentences(const References& r) {
    int64_t span[2] = {0, r.num_sentences};
    check({r.tokens, r.offsets, span, r.num_tokens, r.num_sentences, 1});
}

template <class Token>
void check_tokens(const Candidates& c, int64_t inputs) {
    for (int64_t i = 0; i < c.count; ++i) {
        const Token* tokens = static_cast<const Token*>(c.tokens) + i * c.width;
        int64_t length = given_length(c, i, i % inputs);
        for (int64_t t = 0; t < length; ++t) {
            int64_t token = static_cast<int64_t>(tokens[t]);
            if (token >= 0 && token < INT32_MAX) continue;
            throw std::out_of_range("candidates: got token " + std::to_string(token) + " at position " +
                                    std::to_string(t) + " of candidate " + std::to_string(i) +
                                    ", expected 0 <= token < 2^31 - 1 within its length");
        }
    }
}

void check(const Candidates& c, int64_t inputs) {
    for (int64_t i = 0; i < c.count; ++i) {
        int64_t length = given_length(c, i, i % inputs);
        if (0 <= length && length <= c.width) continue;
        throw std::invalid_argument("lengths: got " + std::to_string(length) + " for candidate " + std::to_string(i) +
                                    ", expected 0 to " + std::to_string(c.width));
    }
    c.are_int64 ? check_tokens<int64_t>(c, inputs) : check_tokens<int32_t>(c, inputs);
}

struct Cpu {
    static void score(const BleuArguments& a, int threads, const std::string&) { run(&sentence_bleu, a, threads); }
    static void score(const CiderArguments& a, int threads, const std::string&) { run(&cider, a, threads); }
    static void score(const AlignmentArguments& a, int threads, const std::string&) { run(&alignment, a, threads); }

    static void score(const CiderNormArguments& a, int threads, const std::string&) {
        require_threads(threads);
        py::gil_scoped_release release;
        check_all_sentences(a.references);
        cider_norms(a, threads);
    }

  private:
    static void require_threads(int threads) {
        require(threads >= 1, "threads: got " + std::to_string(threads) + ", expected at least 1");
    }

    template <class Arguments>
    static void run(void (*kernel)(const Arguments&, int), const Arguments& a, int threads) {
        require_threads(threads);
        py::gil_scoped_release release;
        check(a.references);
        check(a.candidates, a.references.inputs);
        kernel(a, threads);
    }
};

void count_documents(DocumentCounter& counter, const ReferencesTuple& references) {
    References r = make_references(references);
    py::gil_scoped_release release;
    check(r);
    counter.add(r);
}

// (num_nodes, 3) int64: parent, token, documents of the nodes 1, 2, ...
void write_nodes(const DocumentCounter& counter, uintptr_t out) {
    int64_t* row = static_cast<int64_t*>(pointer(out));
    for (const DocumentCounter::Node& node : counter.nodes()) {
        *row++ = node.parent, *row++ = node.token, *row++ = node.documents;
    }
}

void insert_nodes(DocumentCounter& counter, uintptr_t nodes, int64_t count) {
    const int64_t* row = static_cast<const int64_t*>(pointer(nodes));
    for (int64_t i = 0; i < count; ++i, row += 3) {
        bool fits = row[0] >= 0 && row[0] < UINT32_MAX && row[1] >= 0 && row[1] < INT32_MAX && row[2] >= 0 &&
                    row[2] < UINT32_MAX;
        if (!fits) throw std::invalid_argument("nodes: got a number out of range in row " + std::to_string(i));
        counter.insert(static_cast<uint32_t>(row[0]), static_cast<int32_t>(row[1]), static_cast<uint32_t>(row[2]));
    }
}

void write_slots(const DocumentCounter& counter, uintptr_t out) {
    std::copy(counter.slots().begin(), counter.slots().end(), static_cast<Slot*>(pointer(out)));
}

}  // namespace

void bind_rewards(py::module_& m) {
    define_rewards<Cpu, int, const std::string&>(m);
    py::class_<DocumentCounter>(m, "DocumentCounter", "In how many documents each n-gram of a corpus occurs.")
        .def(py::init<>())
        .def("add", &count_documents)
        .def("insert_nodes", &insert_nodes)
        .def("write_nodes", &write_nodes)
        .def("write_slots", &write_slots)
        .def_property_readonly("num_nodes", &DocumentCounter::num_nodes)
        .def_property_readonly("num_slots", &DocumentCounter::num_slots)
        .def_property_readonly("num_documents", &DocumentCounter::num_documents);
}

}  // namespace smoothloss
