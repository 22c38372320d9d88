// The classes that a row's slots name, sorted by block, so that a pass can take them out of a copy of their block.
#pragma once

#include "cpu/row_entries.h"
#include "cpu/token_statistics_kernels.h"

namespace smoothloss {
namespace SMOOTHLOSS_ISA {

static_assert(kStatisticsBlock == kBlock, "blocks are those of row_passes.h");

// Sorts the classes that the slots name by the block they lie in.
template <class T>
SMOOTHLOSS_NOINLINE void sort_by_block(const RowEntries<T>& slots, const StatisticsScratch& scratch) {
    int64_t blocks = (slots.classes + kBlock - 1) / kBlock;
    for (int64_t b = 0; b <= blocks; ++b) scratch.first[b] = 0;
    for (int64_t s = 0; s < slots.slots; ++s) {
        if (slots.filled(s)) ++scratch.first[slots.indices[s] / kBlock];
    }
    int32_t count = 0;
    for (int64_t b = 0; b <= blocks; ++b) scratch.first[b] = count += scratch.first[b];
    for (int64_t s = 0; s < slots.slots; ++s) {
        if (slots.filled(s)) scratch.index[--scratch.first[slots.indices[s] / kBlock]] = slots.indices[s];
    }
}

// A whole vector more than a block.
template <Transform TRANSFORM, class T, class Storage>
SMOOTHLOSS_NOINLINE void transformed_block(const Storage* row, int count, T* z, const TransformTerms<T>& terms) {
    constexpr int width = Lanes<T>::width;
    int i = 0;
    for (; i + width <= count; i += width) store(z + i, transform<TRANSFORM, T>(load(row + i), terms).z);
    if (i < count) store(z + i, transform<TRANSFORM, T>(load_some<T>(row + i, count - i), terms).z);
}

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
