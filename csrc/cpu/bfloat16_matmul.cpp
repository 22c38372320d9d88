#include "cpu/bfloat16_matmul.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/processor.h"

#ifdef SMOOTHLOSS_HAS_AVX512BF16

#include <immintrin.h>

namespace smoothloss {
namespace {

constexpr int kColumns = 32;   // of a panel: two registers
constexpr int kTileRows = 14;  // 28 accumulators, leaving registers for the panel and a broadcast

// Two neighbouring bfloat16 of a row, what the dot-product instruction multiplies at a time.
uint32_t pair_at(const uint16_t* p) {
    uint32_t pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return pair;
}

int64_t pairs_of(int64_t inner) {
    return (inner + 1) / 2;
}

// panel[k][j] = the k-th pair of row j of b; zeros beyond the last column and the last element.
void pack_panel(const MatmulArguments& m, int64_t first, uint32_t* panel) {
    int64_t pairs = pairs_of(m.inner);
    for (int64_t j = 0; j < kColumns; ++j) {
        if (first + j >= m.columns) {
            for (int64_t k = 0; k < pairs; ++k) panel[k * kColumns + j] = 0;
            continue;
        }
        const uint16_t* row = m.b + (first + j) * m.b_stride;
        for (int64_t k = 0; k < m.inner / 2; ++k) panel[k * kColumns + j] = pair_at(row + 2 * k);
        if (m.inner % 2) panel[(pairs - 1) * kColumns + j] = row[m.inner - 1];
    }
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
template <int ROWS>
__attribute__((noinline)) void multiply_tile(const MatmulArguments& m, int64_t row, int64_t first,
                                             const uint32_t* panel) {
    const uint16_t* a = m.a + row * m.a_stride;
    __m512 sums[ROWS][2];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    uint32_t pairs[ROWS];
    int64_t whole = m.inner / 2;
    for (int64_t k = 0; k < whole; ++k) {
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) pairs[r] = pair_at(a + r * m.a_stride + 2 * k);
        multiply_pair<ROWS>(sums, pairs, panel + k * kColumns);
    }
    if (m.inner % 2) {
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) pairs[r] = a[r * m.a_stride + m.inner - 1];
        multiply_pair<ROWS>(sums, pairs, panel + whole * kColumns);
    }
    int64_t count = std::min<int64_t>(kColumns, m.columns - first);
    uint32_t mask = count == kColumns ? ~0u : (1u << count) - 1;
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        float* out = m.out + (row + r) * m.out_stride + first;
        _mm512_mask_storeu_ps(out, static_cast<__mmask16>(mask), sums[r][0]);
        _mm512_mask_storeu_ps(out + 16, static_cast<__mmask16>(mask >> 16), sums[r][1]);
    }
}

void multiply_panel(const MatmulArguments& m, int64_t first, const uint32_t* panel) {
    int64_t row = 0;
    for (; row + kTileRows <= m.rows; row += kTileRows) multiply_tile<kTileRows>(m, row, first, panel);
    for (; row + 4 <= m.rows; row += 4) multiply_tile<4>(m, row, first, panel);
    for (; row < m.rows; ++row) multiply_tile<1>(m, row, first, panel);
}

}  // namespace

bool has_bfloat16_matmul() {
    return processor().avx512bf16;
}

void bfloat16_matmul(const MatmulArguments& m, int threads) {
    int64_t panels = (m.columns + kColumns - 1) / kColumns;
    int workers = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, panels)));
    int64_t size = pairs_of(m.inner) * kColumns;
    std::vector<uint32_t> scratch(workers * size);
    share_out(panels, 1, workers, [&](Chunks& chunks, int worker) {
        uint32_t* panel = scratch.data() + worker * size;
        chunks.for_each([&](int64_t mine, int64_t) {
            pack_panel(m, mine * kColumns, panel);
            multiply_panel(m, mine * kColumns, panel);
        });
    });
}

}  // namespace smoothloss

#else

namespace smoothloss {

bool has_bfloat16_matmul() {
    return false;
}

void bfloat16_matmul(const MatmulArguments&, int) {
    throw std::logic_error("bfloat16_matmul: this build does not have it");
}

}  // namespace smoothloss

#endif
