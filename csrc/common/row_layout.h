// How a row that starts anywhere is cut into aligned packs of `count` classes: a head, whole packs, a tail. Several
// blocks may share a row: each has a run of its packs, the first of them the head and the tail too.
#pragma once

#include <cstdint>

#include "common/row_terms.h"

namespace smoothloss {
namespace SMOOTHLOSS_ISA {

struct RowLayout {
    uint32_t classes;
    uint32_t count;       // classes a pack
    uint32_t head;        // classes before the first pack
    uint32_t packs;       // of the whole row
    uint32_t first_pack;  // of this block
    uint32_t end_pack;    // of this block
    uint32_t edges;       // classes of head and tail, if they are this block's

    SMOOTHLOSS_HD uint32_t class_of_pack(uint32_t pack) const { return head + pack * count; }

    SMOOTHLOSS_HD uint32_t class_of_edge(uint32_t edge) const { return edge < head ? edge : classes - edges + edge; }

    // Whether a class (not beyond the row) belongs to this block.
    SMOOTHLOSS_HD bool owns(uint32_t index) const {
        uint32_t offset = index - head;  // below the head: wraps around, and is beyond all packs
        if (offset >= packs * count) return edges != 0;
        return offset >= first_pack * count && offset < end_pack * count;
    }
};

// `misaligned`: by how many elements the row starts beyond a multiple of a pack.
SMOOTHLOSS_HD RowLayout row_layout(uint32_t classes, uint32_t count, uint32_t misaligned) {
    uint32_t head = misaligned == 0 ? 0 : count - misaligned;
    if (head > classes) head = classes;
    uint32_t packs = (classes - head) / count;
    return {classes, count, head, packs, 0, packs, classes - packs * count};
}

// Without packs, for what cannot be aligned: every class is an edge.
SMOOTHLOSS_HD RowLayout scalar_layout(uint32_t classes, uint32_t count) {
    return {classes, count, classes, 0, 0, 0, classes};
}

// The most packs that one of `blocks` gets.
SMOOTHLOSS_HD uint32_t packs_per_block(uint32_t packs, uint32_t blocks) {
    return (packs + blocks - 1) / blocks;
}

SMOOTHLOSS_HD RowLayout share_of_block(RowLayout row, uint32_t block, uint32_t blocks) {
    uint32_t share = packs_per_block(row.packs, blocks);
    row.first_pack = block * share < row.packs ? block * share : row.packs;
    row.end_pack = row.packs - row.first_pack < share ? row.packs : row.first_pack + share;
    if (block != 0) row.edges = 0;
    return row;
}

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
