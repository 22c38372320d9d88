#include "cpu/target_indices.h"

namespace smoothloss {
namespace {

// Whether this is an error, which an empty slot is not.
template <class Index>
bool is_wrong(Index index, const Targets& targets, int64_t classes) {
    if (targets.are_labels) return (index < 0 || index >= classes) && index != targets.ignore_index;
    return index >= classes;
}

// Written so that the compiler vectorises it: nearly always there is nothing wrong.
template <class Index>
bool any_wrong(const Index* indices, int64_t count, int64_t classes) {
    bool wrong = false;
    for (int64_t i = 0; i < count; ++i) wrong |= indices[i] >= classes;
    return wrong;
}

template <class Index>
int64_t narrow_labels(const Index* labels, int64_t count, const Targets& targets, int64_t classes, int32_t* out) {
    for (int64_t i = 0; i < count; ++i) {
        if (is_wrong(labels[i], targets, classes)) return i;
        out[i] = labels[i] == targets.ignore_index ? -1 : static_cast<int32_t>(labels[i]);
    }
    return -1;
}

template <class Index>
int64_t find_wrong(const Index* indices, int64_t count, const Targets& targets, int64_t classes) {
    if (!any_wrong(indices, count, classes)) return -1;
    int64_t i = 0;
    while (!is_wrong(indices[i], targets, classes)) ++i;
    return i;
}

void narrow_entries(const int64_t* indices, int64_t count, int32_t* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<int32_t>(indices[i] < 0 ? -1 : indices[i]);
}

}  // namespace

TargetIndices::TargetIndices(const Targets& targets, int64_t rows, int64_t classes) : given_(targets) {
    int64_t count = rows * targets.slots;
    const auto* wide = static_cast<const int64_t*>(targets.indices);
    const auto* narrow = static_cast<const int32_t*>(targets.indices);
    if (targets.are_labels || targets.are_int64) narrow_.reset(new int32_t[count + 1]);
    if (targets.are_labels) {
        first_wrong_ = targets.are_int64 ? narrow_labels(wide, count, targets, classes, narrow_.get())
                                         : narrow_labels(narrow, count, targets, classes, narrow_.get());
    } else if (targets.are_int64) {
        first_wrong_ = find_wrong(wide, count, targets, classes);
        if (first_wrong_ < 0) narrow_entries(wide, count, narrow_.get());
    } else {
        first_wrong_ = find_wrong(narrow, count, targets, classes);
    }
}

Targets TargetIndices::targets() const {
    Targets result = given_;
    if (narrow_) result.indices = narrow_.get();
    result.are_int64 = false;
    return result;
}

}  // namespace smoothloss
