// Products of bfloat16 with the tile registers of AMX, of 16 rows of 64 bytes.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/bfloat16_panels.h"
#include "cpu/parallel.h"

namespace smoothloss {

constexpr int64_t kTileRows = 32;   // whose sums stay in tiles at a time: two of 16, by the two of a panel
constexpr int64_t kTileInner = 32;  // elements of a row of a tile

// How many elements pack_rows writes.
inline int64_t packed_size(int64_t rows, int64_t inner) {
    return (rows + kTileRows - 1) / kTileRows * kTileRows * 2 * panel_pairs(inner);
}

// Writes 32 rows of a tile by tile, `first` and those after it, with zeros beyond the last row and the last element.
// Rows that lie a power of two apart would share their places in the cache.
inline void pack_rows(const uint16_t* a, int64_t a_stride, int64_t rows, int64_t inner, int64_t first, uint16_t* out) {
    out += first * 2 * panel_pairs(inner);
    for (int64_t k = 0; k < inner; k += kTileInner) {
        __mmask32 mask = inner - k >= kTileInner ? ~0u : (1u << (inner - k)) - 1;
        for (int64_t row = first; row < first + kTileRows; ++row, out += kTileInner) {
            bool is_there = row < rows;
            const uint16_t* from = a + (is_there ? row : first) * a_stride + k;
            _mm512_store_si512(out, _mm512_maskz_loadu_epi16(is_there ? mask : 0, from));
        }
    }
}

// While it lives, the thread's tiles are set up: 0 to 3 are sums, of the upper rows and of the lower; 4 and 5 hold rows
// of a, 6 and 7 a panel.
class Tiles {
  public:
    Tiles() {
        struct alignas(64) {
            uint8_t palette = 1;
            uint8_t start_row = 0;
            uint8_t reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } config;
        std::fill_n(config.row_bytes, 8, uint16_t{64});
        std::fill_n(config.rows, 8, uint8_t{16});
        is_read(&config);
        _tile_loadconfig(&config);
    }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
    ~Tiles() { _tile_release(); }

    // sums (32 x 32, rows `stride` apart) = 32 packed rows times a panel; of their first 16 where not HAS_LOWER.
    template <bool HAS_LOWER>
    void multiply(const uint16_t* rows, int64_t inner, const uint32_t* panel, float* sums, int64_t stride) const {
        is_read(rows);
        is_read(panel);
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t k = 0; k < inner; k += kTileInner) {
            // All loads first: with loads between products it took 1.2 times as long (benchmarks/NOTES.md).
            _tile_loadd(6, panel, 4 * kPanelColumns);
            _tile_loadd(7, panel + 16, 4 * kPanelColumns);
            _tile_loadd(4, rows, 64);
            if (HAS_LOWER) _tile_loadd(5, rows + 16 * kTileInner, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            if (HAS_LOWER) {
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            rows += kTileRows * kTileInner;
            panel += 16 * kPanelColumns;
        }
        _tile_stored(0, sums, 4 * stride);
        _tile_stored(1, sums + 16, 4 * stride);
        if (HAS_LOWER) {
            _tile_stored(2, sums + 16 * stride, 4 * stride);
            _tile_stored(3, sums + 16 * stride + 16, 4 * stride);
        }
    }

  private:
    // Keeps the stores to memory that tiles are loaded from: GCC's intrinsics do not say that they read it, and without
    // this it left them out.
    static void is_read(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }
};

// What a worker multiplies with.
class InTiles {
  public:
    // The rows of a, packed once for all panels.
    class Rows {
      public:
        Rows(const uint16_t* a, int64_t a_stride, int64_t rows, int64_t inner, int threads)
            : packed_(packed_size(rows, inner)) {
            int64_t blocks = (rows + kTileRows - 1) / kTileRows;
            int workers = static_cast<int>(std::clamp<int64_t>(blocks, 1, threads));
            share_out(blocks, 1, workers, [&](Chunks& chunks, int) {
                chunks.for_each([&](int64_t block, int64_t) {
                    pack_rows(a, a_stride, rows, inner, block * kTileRows, packed_.data());
                });
            });
        }
        const uint16_t* from(int64_t row, int64_t inner) const { return packed_.data() + row * 2 * panel_pairs(inner); }

      private:
        Scratch<uint16_t> packed_;
    };

    // Calls ahead(row, rows) before it turns to these rows, for what the next panel will wait for.
    template <typename T, typename Ahead>
    void multiply(const Rows& a, const Block<T>& block, const uint32_t* panel, Ahead&& ahead) {
        alignas(64) float sums[kTileRows * kPanelColumns];
        RowStore<T> store_row(block);
        for (int64_t row = 0; row < block.rows; row += kTileRows) {
            int64_t rows = std::min(kTileRows, block.rows - row);
            const uint16_t* packed = a.from(row, block.inner);
            ahead(row, rows);
            if constexpr (std::is_same_v<T, float>) {
                if (rows == kTileRows && block.columns == kPanelColumns && !block.bias) {
                    tiles_.multiply<true>(packed, block.inner, panel, block.out + row * block.out_stride,
                                          block.out_stride);
                    continue;
                }
            }
            if (rows > kTileRows / 2) {
                tiles_.multiply<true>(packed, block.inner, panel, sums, kPanelColumns);
            } else {
                tiles_.multiply<false>(packed, block.inner, panel, sums, kPanelColumns);
            }
            for (int64_t r = 0; r < rows; ++r) {
                const float* mine = sums + r * kPanelColumns;
                store_row(row + r, _mm512_load_ps(mine), _mm512_load_ps(mine + 16));
            }
        }
    }

  private:
    Tiles tiles_;
};

}  // namespace smoothloss
