#include "ngram/document_counter.h"

#include <stdexcept>

#include "ngram/cider.h"

namespace smoothloss {
namespace ngram {

namespace {

size_t place(const std::vector<Slot>& slots, uint64_t key) {
    size_t mask = slots.size() - 1;
    size_t at = mix(key) & mask;
    while (slots[at].key != key && slots[at].key != 0) at = (at + 1) & mask;
    return at;
}

}  // namespace

DocumentCounter::DocumentCounter() : slots_(1024, Slot{0, 0, 0}), last_document_(1, -1) {}

void DocumentCounter::grow() {
    std::vector<Slot> larger(slots_.size() * 2, Slot{0, 0, 0});
    for (const Slot& slot : slots_) {
        if (slot.key) larger[place(larger, slot.key)] = slot;
    }
    slots_.swap(larger);
}

Slot& DocumentCounter::slot(uint32_t parent, int32_t token) {
    uint64_t key = slot_key(parent, token);
    size_t at = place(slots_, key);
    if (slots_[at].key) return slots_[at];
    if (last_document_.size() >= UINT32_MAX) throw std::length_error("more than 2^32 different n-grams");
    if (3 * last_document_.size() > 2 * slots_.size()) {
        grow();
        at = place(slots_, key);
    }
    slots_[at] = {key, static_cast<uint32_t>(last_document_.size()), 0};
    last_document_.push_back(-1);
    return slots_[at];
}

void DocumentCounter::add(const References& references) {
    for (int64_t input = 0; input < references.inputs; ++input) {
        int64_t document = num_documents_++;
        Span span = span_of(references, input);
        for (int64_t s = span.first; s < span.last; ++s) {
            Sentence<int32_t> sentence = reference(references, s);
            for (int i = 0; i < sentence.length; ++i) {
                uint32_t node = 0;
                for (int n = i; n < smaller(i + kCiderOrder, sentence.length); ++n) {
                    Slot& found = slot(node, sentence.tokens[n]);
                    node = found.node;
                    if (last_document_[node] != document) ++found.documents;
                    last_document_[node] = document;
                }
            }
        }
    }
}

void DocumentCounter::insert(uint32_t parent, int32_t token, uint32_t documents) {
    if (parent >= last_document_.size() || token < 0 || documents == 0) {
        throw std::invalid_argument("an n-gram's prefix must come before it, its token and documents be positive");
    }
    Slot& added = slot(parent, token);
    if (added.documents) throw std::invalid_argument("an n-gram comes twice");
    added.documents = documents;
}

std::vector<DocumentCounter::Node> DocumentCounter::nodes() const {
    std::vector<Node> nodes(static_cast<size_t>(num_nodes()));
    for (const Slot& slot : slots_) {
        if (slot.key == 0) continue;
        uint32_t parent = static_cast<uint32_t>(slot.key >> 32);
        int32_t token = static_cast<int32_t>(static_cast<uint32_t>(slot.key) - 1u);
        nodes[slot.node - 1] = {parent, token, slot.documents};
    }
    return nodes;
}

}  // namespace ngram
}  // namespace smoothloss
