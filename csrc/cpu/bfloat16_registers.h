// Products of bfloat16 with the dot-product instruction of AVX512_BF16.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/bfloat16_panels.h"

namespace smoothloss {

constexpr int64_t kRegisterRows = 14;  // 28 accumulators, leaving registers for the panel and a broadcast

// Two neighbouring bfloat16 of a row, what the dot-product instruction multiplies at a time.
inline uint32_t pair_at(const uint16_t* p) {
    uint32_t pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return pair;
}

template <int ROWS>
inline __attribute__((always_inline)) void multiply_pair(__m512 (&sums)[ROWS][2], const uint32_t (&a)[ROWS],
                                                         const uint32_t* panel) {
    __m512bh left = (__m512bh)_mm512_loadu_si512(panel);
    __m512bh right = (__m512bh)_mm512_loadu_si512(panel + 16);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        __m512bh value = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[r]));
        sums[r][0] = _mm512_dpbf16_ps(sums[r][0], value, left);
        sums[r][1] = _mm512_dpbf16_ps(sums[r][1], value, right);
    }
}

// ROWS rows of a against a panel.
template <int ROWS, typename T>
__attribute__((noinline)) void multiply_rows(const uint16_t* a, int64_t a_stride, const Block<T>& block, int64_t row,
                                             const uint32_t* panel) {
    a += row * a_stride;
    __m512 sums[ROWS][2];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    uint32_t pairs[ROWS];
    int64_t whole = block.inner / 2;
    for (int64_t k = 0; k < whole; ++k) {
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) pairs[r] = pair_at(a + r * a_stride + 2 * k);
        multiply_pair<ROWS>(sums, pairs, panel + k * kPanelColumns);
    }
    if (block.inner % 2) {
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) pairs[r] = a[r * a_stride + block.inner - 1];
        multiply_pair<ROWS>(sums, pairs, panel + whole * kPanelColumns);
    }
    RowStore<T> store_row(block);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) store_row(row + r, sums[r][0], sums[r][1]);
}

// What a worker multiplies with.
struct InRegisters {
    // The rows of a, read where they are.
    class Rows {
      public:
        Rows(const uint16_t* a, int64_t stride, int64_t, int64_t, int) : data(a), stride(stride) {}
        const uint16_t* data;
        int64_t stride;
    };

    // Calls ahead(row, rows) before it turns to these rows, for what the next panel will wait for.
    template <typename T, typename Ahead>
    void multiply(const Rows& a, const Block<T>& block, const uint32_t* panel, Ahead&& ahead) {
        int64_t row = 0;
        for (; row + kRegisterRows <= block.rows; row += kRegisterRows) {
            ahead(row, kRegisterRows);
            multiply_rows<kRegisterRows>(a.data, a.stride, block, row, panel);
        }
        for (; row + 4 <= block.rows; row += 4) multiply_rows<4>(a.data, a.stride, block, row, panel);
        for (; row < block.rows; ++row) multiply_rows<1>(a.data, a.stride, block, row, panel);
    }
};

}  // namespace smoothloss
