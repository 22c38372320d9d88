// Who scores a sentence together: on a GPU the lanes of a warp, on the CPU a single thread. The members of a team share
// the positions of the sentence, and all of them get the same results:
//
//   rank(), kSize           which member this is, of how many: it takes the positions rank, rank + size, ...
//   sum(value)              over the members, always in the same order
//   read(address)           what the first member has written there
//   block(sentence, first)  32 tokens of a sentence, or those that are left from `first` on; bit i of equal_to(token)
//                           says whether the i-th of them is that token
#pragma once

#include "ngram/matches.h"

namespace smoothloss {
namespace ngram {

struct SingleThread {
    static constexpr int kSize = 1;

    struct Block {
        const int32_t* tokens;
        int count;

        template <class Token>
        SMOOTHLOSS_NGRAM_HD uint32_t equal_to(Token token) const {
            uint32_t equal = 0;
            for (int i = 0; i < count; ++i) equal |= static_cast<uint32_t>(tokens[i] == token) << i;
            return equal;
        }
    };

    SMOOTHLOSS_NGRAM_HD int rank() const { return 0; }

    template <class T>
    SMOOTHLOSS_NGRAM_HD T sum(T value) const {
        return value;
    }

    template <class T>
    SMOOTHLOSS_NGRAM_HD T read(const T* address) const {
        return *address;
    }

    SMOOTHLOSS_NGRAM_HD Block block(const Sentence<int32_t>& sentence, int first) const {
        return {sentence.tokens + first, smaller(32, sentence.length - first)};
    }
};

}  // namespace ngram
}  // namespace smoothloss
