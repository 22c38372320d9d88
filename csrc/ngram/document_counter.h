// In how many documents each n-gram of a corpus occurs: the table that CIDEr weighs n-grams by.
#pragma once

#include <vector>

#include "ngram/arguments.h"

namespace smoothloss {
namespace ngram {

class DocumentCounter {
  public:
    DocumentCounter();

    // Counts the n-grams, n = 1 to 4, of each input's references once.
    void add(const References& references);

    // Puts a node back that `nodes` has named; they come in the order of their numbers, from 1 on.
    void insert(uint32_t parent, int32_t token, uint32_t documents);

    struct Node {
        uint32_t parent;
        int32_t token;
        uint32_t documents;
    };

    const std::vector<Slot>& slots() const { return slots_; }
    std::vector<Node> nodes() const;
    int64_t num_slots() const { return static_cast<int64_t>(slots_.size()); }
    int64_t num_nodes() const { return static_cast<int64_t>(last_document_.size()) - 1; }
    int64_t num_documents() const { return num_documents_; }

  private:
    Slot& slot(uint32_t parent, int32_t token);
    void grow();

    std::vector<Slot> slots_;
    std::vector<int64_t> last_document_;  // that a node was seen in, by node
    int64_t num_documents_ = 0;
};

}  // namespace ngram
}  // namespace smoothloss
