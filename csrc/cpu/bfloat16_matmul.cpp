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

// Of 16 rows of 16 numbers of 32 bits, the 16 columns.
inline __attribute__((always_inline)) void transpose(__m512i (&v)[16]) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {  // lane by lane, 4 x 4
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // and the lanes
        t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        v[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        v[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// panel[k][j] = the k-th pair of row j of b; zeros beyond the last column and the last element.
void pack_panel(const MatmulArguments& m, int64_t first, uint32_t* panel) {
    for (int64_t k = 0; k < m.inner; k += 32) {
        int64_t left = m.inner - k, pairs = std::min<int64_t>(16, pairs_of(left));
        __mmask32 mask = left >= 32 ? ~0u : (1u << left) - 1;
        for (int64_t j = 0; j < kColumns; j += 16) {
            __m512i rows[16];
#pragma GCC unroll 16
            for (int64_t i = 0; i < 16; ++i) {
                bool is_there = first + j + i < m.columns;
                const uint16_t* row = m.b + (is_there ? first + j + i : first) * m.b_stride + k;
                rows[i] = _mm512_maskz_loadu_epi16(is_there ? mask : 0, row);
            }
            transpose(rows);
            uint32_t* out = panel + k / 2 * kColumns + j;
#pragma GCC unroll 16
            for (int64_t i = 0; i < 16; ++i) {
                if (i < pairs) _mm512_storeu_si512(out + i * kColumns, rows[i]);
            }
        }
    }
}

// The same of columns: panel[k][j] = elements 2 k and 2 k + 1 of the band in column j.
void pack_panel(const BandedMatmulArguments& m, int64_t begin, int64_t end, int64_t first, uint32_t* panel) {
    int64_t count = std::min<int64_t>(kColumns, m.columns - first);
    __mmask32 mask = count == kColumns ? ~0u : (1u << count) - 1;
    alignas(64) uint16_t pick[2][kColumns];  // from two rows one after the other, element by element
    for (int j = 0; j < kColumns; ++j) {
        pick[0][j] = static_cast<uint16_t>(j / 2 + j % 2 * kColumns);
        pick[1][j] = static_cast<uint16_t>(pick[0][j] + kColumns / 2);
    }
    __m512i low = _mm512_load_si512(pick[0]), high = _mm512_load_si512(pick[1]);
    constexpr int64_t kAhead = 32;  // rows, which lie wherever the order says
    auto row_at = [&](int64_t k) { return m.b + (m.order ? m.order[k] : k) * m.b_stride + first; };
    for (int64_t k = begin; k < end; k += 2) {
        __m512i rows[2];
        for (int64_t i = k; i < k + 2; ++i) {
            if (i + kAhead < end) _mm_prefetch(row_at(i + kAhead), _MM_HINT_T0);
            rows[i - k] = i < end ? _mm512_maskz_loadu_epi16(mask, row_at(i)) : _mm512_setzero_si512();
        }
        uint32_t* out = panel + (k - begin) / 2 * kColumns;
        _mm512_storeu_si512(out, _mm512_permutex2var_epi16(rows[0], low, rows[1]));
        _mm512_storeu_si512(out + kColumns / 2, _mm512_permutex2var_epi16(rows[0], high, rows[1]));
    }
}

// Rows of a that are multiplied by a panel, and where the product goes.
template <typename T>
struct Block {
    const uint16_t* a;
    const float* bias;  // of the panel's columns, or null
    T* out;
    int64_t rows;
    int64_t inner;
    int64_t a_stride;
    int64_t out_stride;
    int64_t columns;  // of the panel
};

void store(float* out, __mmask16 mask, __m512 values) {
    _mm512_mask_storeu_ps(out, mask, values);
}

void store(uint16_t* out, __mmask16 mask, __m512 values) {
    _mm256_mask_storeu_epi16(out, mask, (__m256i)_mm512_cvtneps_pbh(values));
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
__attribute__((noinline)) void multiply_tile(const Block<T>& block, int64_t row, const uint32_t* panel) {
    const uint16_t* a = block.a + row * block.a_stride;
    __m512 sums[ROWS][2];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    uint32_t pairs[ROWS];
    int64_t whole = block.inner / 2;
    for (int64_t k = 0; k < whole; ++k) {
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) pairs[r] = pair_at(a + r * block.a_stride + 2 * k);
        multiply_pair<ROWS>(sums, pairs, panel + k * kColumns);
    }
    if (block.inner % 2) {
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) pairs[r] = a[r * block.a_stride + block.inner - 1];
        multiply_pair<ROWS>(sums, pairs, panel + whole * kColumns);
    }
    uint32_t mask = block.columns == kColumns ? ~0u : (1u << block.columns) - 1;
    __mmask16 left = static_cast<__mmask16>(mask), right = static_cast<__mmask16>(mask >> 16);
    __m512 bias[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    if (block.bias) {
        bias[0] = _mm512_maskz_loadu_ps(left, block.bias);
        bias[1] = _mm512_maskz_loadu_ps(right, block.bias + 16);
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        T* out = block.out + (row + r) * block.out_stride;
        store(out, left, _mm512_add_ps(sums[r][0], bias[0]));
        store(out + 16, right, _mm512_add_ps(sums[r][1], bias[1]));
    }
}

// Calls ahead(row) before each tile, for what the next panel will wait for.
template <typename T, typename Ahead>
void multiply_panel(const Block<T>& block, const uint32_t* panel, Ahead&& ahead) {
    int64_t row = 0;
    for (; row + kTileRows <= block.rows; row += kTileRows) {
        ahead(row);
        multiply_tile<kTileRows>(block, row, panel);
    }
    for (; row + 4 <= block.rows; row += 4) multiply_tile<4>(block, row, panel);
    for (; row < block.rows; ++row) multiply_tile<1>(block, row, panel);
}

// Asks for the lines of b that the panel from column `first` on is packed from: what a tile at `row` has time for.
void prefetch(const MatmulArguments& m, int64_t first, int64_t row) {
    if (first >= m.columns) return;
    constexpr int64_t kLine = 32;  // elements
    int64_t lines = (m.inner + kLine - 1) / kLine, total = lines * std::min<int64_t>(kColumns, m.columns - first);
    int64_t share = (total * kTileRows + m.rows - 1) / m.rows, begin = row / kTileRows * share;
    for (int64_t i = begin; i < std::min(begin + share, total); ++i)
        _mm_prefetch(m.b + (first + i / lines) * m.b_stride + i % lines * kLine, _MM_HINT_T1);
}

// Calls work(first column, columns, scratch of a panel) for each panel of 32 columns.
template <typename Work>
void for_panels(int64_t columns, int64_t inner, int threads, Work&& work) {
    int64_t panels = (columns + kColumns - 1) / kColumns;
    int workers = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, panels)));
    int64_t size = pairs_of(inner) * kColumns;
    std::vector<uint32_t> scratch(workers * size);
    share_out(panels, 1, workers, [&](Chunks& chunks, int worker) {
        chunks.for_each([&](int64_t mine, int64_t) {
            int64_t first = mine * kColumns;
            work(first, std::min<int64_t>(kColumns, columns - first), scratch.data() + worker * size);
        });
    });
}

template <typename T>
void multiply_bands(const BandedMatmulArguments& m, int threads) {
    int64_t longest = 0;
    for (int64_t band = 0; band < m.bands; ++band)
        longest = std::max(longest, m.ends[band] - (band ? m.ends[band - 1] : 0));
    for_panels(m.columns, longest, threads, [&](int64_t first, int64_t columns, uint32_t* panel) {
        for (int64_t band = 0; band < m.bands; ++band) {
            int64_t begin = band ? m.ends[band - 1] : 0, end = m.ends[band];
            pack_panel(m, begin, end, first, panel);
            T* out = static_cast<T*>(m.out) + band * m.rows * m.columns + first;
            Block<T> block{m.a + begin, nullptr, out, m.rows, end - begin, m.a_stride, m.columns, columns};
            multiply_panel(block, panel, [](int64_t) {});
        }
    });
}

}  // namespace

bool has_bfloat16_matmul() {
    return processor().avx512bf16;
}

void bfloat16_matmul(const MatmulArguments& m, int threads) {
    for_panels(m.columns, m.inner, threads, [&](int64_t first, int64_t columns, uint32_t* panel) {
        pack_panel(m, first, panel);
        const float* bias = m.bias ? m.bias + first : nullptr;
        Block<float> block{m.a, bias, m.out + first, m.rows, m.inner, m.a_stride, m.out_stride, columns};
        multiply_panel(block, panel, [&](int64_t row) { prefetch(m, first + threads * kColumns, row); });
    });
}

void bfloat16_banded_matmul(const BandedMatmulArguments& m, int threads) {
    m.is_narrow ? multiply_bands<uint16_t>(m, threads) : multiply_bands<float>(m, threads);
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

void bfloat16_banded_matmul(const BandedMatmulArguments&, int) {
    throw std::logic_error("bfloat16_banded_matmul: this build does not have it");
}

}  // namespace smoothloss

#endif
