// What the products of bfloat16 share: columns of the second matrix, packed as the instructions read them, and the way
// of the sums to where they belong.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "cpu/bfloat16_matmul.h"

namespace smoothloss {

constexpr int kPanelColumns = 32;  // two registers of pairs, or two tiles

// Memory that is not written to, at the start of a line of the cache.
template <typename T>
class Scratch {
  public:
    explicit Scratch(int64_t size)
        : data_(static_cast<T*>(::operator new(static_cast<size_t>(size) * sizeof(T), kLine))) {}
    T* data() const { return data_.get(); }

  private:
    static constexpr std::align_val_t kLine{64};
    struct Free {
        void operator()(T* data) const { ::operator delete(data, kLine); }
    };
    std::unique_ptr<T, Free> data_;
};

// Rows of a panel for so many elements: whole tiles, filled up with zeros.
inline int64_t panel_pairs(int64_t inner) {
    return (inner + 31) / 32 * 16;
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
inline void pack_panel(const MatmulArguments& m, int64_t first, uint32_t* panel) {
    for (int64_t k = 0; k < m.inner; k += 32) {
        int64_t left = m.inner - k;
        __mmask32 mask = left >= 32 ? ~0u : (1u << left) - 1;
        for (int64_t j = 0; j < kPanelColumns; j += 16) {
            __m512i rows[16];
#pragma GCC unroll 16
            for (int64_t i = 0; i < 16; ++i) {
                bool is_there = first + j + i < m.columns;
                const uint16_t* row = m.b + (is_there ? first + j + i : first) * m.b_stride + k;
                rows[i] = _mm512_maskz_loadu_epi16(is_there ? mask : 0, row);
            }
            transpose(rows);
            uint32_t* out = panel + k / 2 * kPanelColumns + j;
#pragma GCC unroll 16
            for (int64_t i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * kPanelColumns, rows[i]);
        }
    }
}

// The same of columns, for as many panels as `count` columns fill, one after the other: panel[k][j] = elements 2 k and
// 2 k + 1 of the band in column j. A row of b is read for all of them at a time.
inline void pack_panels(const BandedMatmulArguments& m, int64_t begin, int64_t end, int64_t first, int64_t count,
                        uint32_t* panels) {
    alignas(64) uint16_t pick[2][kPanelColumns];  // from two rows one after the other, element by element
    for (int j = 0; j < kPanelColumns; ++j) {
        pick[0][j] = static_cast<uint16_t>(j / 2 + j % 2 * kPanelColumns);
        pick[1][j] = static_cast<uint16_t>(pick[0][j] + kPanelColumns / 2);
    }
    __m512i low = _mm512_load_si512(pick[0]), high = _mm512_load_si512(pick[1]);
    constexpr int64_t kAhead = 32;  // rows, which lie wherever the order says
    auto row_at = [&](int64_t k) { return m.b + (m.order ? m.order[k] : k) * m.b_stride + first; };
    int64_t pairs = panel_pairs(end - begin);
    for (int64_t pair = 0; pair < pairs; ++pair) {
        int64_t k = begin + 2 * pair;
        const uint16_t* rows[2] = {k < end ? row_at(k) : nullptr, k + 1 < end ? row_at(k + 1) : nullptr};
        const uint16_t* ahead[2] = {k + kAhead < end ? row_at(k + kAhead) : nullptr,
                                    k + 1 + kAhead < end ? row_at(k + 1 + kAhead) : nullptr};
        uint32_t* out = panels + pair * kPanelColumns;
        for (int64_t j = 0; j < count; j += kPanelColumns, out += pairs * kPanelColumns) {
            __mmask32 mask = count - j >= kPanelColumns ? ~0u : (1u << (count - j)) - 1;
            __m512i values[2];
            for (int i = 0; i < 2; ++i) {
                if (ahead[i]) __builtin_prefetch(ahead[i] + j);
                values[i] = rows[i] ? _mm512_maskz_loadu_epi16(mask, rows[i] + j) : _mm512_setzero_si512();
            }
            _mm512_storeu_si512(out, _mm512_permutex2var_epi16(values[0], low, values[1]));
            _mm512_storeu_si512(out + kPanelColumns / 2, _mm512_permutex2var_epi16(values[0], high, values[1]));
        }
    }
}

// Where the product of some rows and a panel goes.
template <typename T>
struct Block {
    const float* bias;  // of the panel's columns, or null
    T* out;
    int64_t rows;
    int64_t inner;
    int64_t out_stride;
    int64_t columns;  // of the panel
};

inline void store(float* out, __mmask16 mask, __m512 values) {
    _mm512_mask_storeu_ps(out, mask, values);
}

inline void store(uint16_t* out, __mmask16 mask, __m512 values) {
    _mm256_mask_storeu_epi16(out, mask, (__m256i)_mm512_cvtneps_pbh(values));
}

// The sums of a row, with what is added to them, to where the product goes.
template <typename T>
class RowStore {
  public:
    explicit RowStore(const Block<T>& block) : block_(block) {
        uint32_t mask = block.columns == kPanelColumns ? ~0u : (1u << block.columns) - 1;
        masks_[0] = static_cast<__mmask16>(mask);
        masks_[1] = static_cast<__mmask16>(mask >> 16);
        for (int i = 0; i < 2; ++i)
            bias_[i] = block.bias ? _mm512_maskz_loadu_ps(masks_[i], block.bias + 16 * i) : _mm512_setzero_ps();
    }

    void operator()(int64_t row, __m512 left, __m512 right) const {
        T* out = block_.out + row * block_.out_stride;
        store(out, masks_[0], _mm512_add_ps(left, bias_[0]));
        store(out + 16, masks_[1], _mm512_add_ps(right, bias_[1]));
    }

  private:
    Block<T> block_;
    __mmask16 masks_[2];
    __m512 bias_[2];
};

}  // namespace smoothloss
