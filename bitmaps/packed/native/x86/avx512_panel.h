/* AVX-512 and AMX: weights unpacked into a panel, for products with many tokens. */
#ifndef BITMAPS_AVX512_PANEL_H
#define BITMAPS_AVX512_PANEL_H

#include "avx512_vectors.h"

/* Bits 4 i to 4 i + 3 of each lane, a byte each: 1 where the bit is set; i = 0..7. */
INLINE __m512i expand(__m512i words, int i)
{
    const __m512i lanes = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    const __m512i bit = _mm512_set1_epi32(i % 2 ? (int)0x80402010 : 0x08040201);
    const __m512i from = _mm512_add_epi8(lanes, _mm512_set1_epi8(i / 2));
    const __m512i bytes = _mm512_shuffle_epi8(words, from);
    return _mm512_min_epu8(_mm512_and_si512(bytes, bit), _mm512_set1_epi8(1));
}

/* What a panel is made of: `bytes` of each row of weights, from byte `start` on, of rows n0 to
 * n1 - 1. There are 16 a vector; rows that are not there are 0. */
struct source {
    const struct matrix *w;
    int64_t n0, n1, start, bytes;
};

/* Bytes b to b + 63 of sixteen rows from n on. */
INLINE void load_rows(const struct source *of, int64_t n, int64_t b, __m512i r[16])
{
    const int64_t row = row_bytes(of->w), left = of->bytes - b;
    const __mmask64 mask = left >= 64 ? ~0ull : _bzhi_u64(~0ull, left);
    const uint8_t *from = of->w->weight + n * row + of->start + b;
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        r[i] = _mm512_maskz_loadu_epi8(n + i < of->n1 ? mask : 0, from + i * row);
}

/* Fetch bytes b to b + 63 of sixteen rows from n on, which need not be there. */
INLINE void prefetch_rows(const struct source *of, int64_t n, int64_t b)
{
    const int64_t row = row_bytes(of->w);
    for (int i = 0; i < 16; i++)
        __builtin_prefetch(of->w->weight + (n + i) * row + of->start + b);
}

/* Add 128 times the sums of four vectors to the corrections of 16 outputs. */
INLINE void add_correction(const __m512i total[4], int32_t *correction)
{
    const __m512i a = _mm512_add_epi32(total[0], total[1]);
    const __m512i b = _mm512_add_epi32(total[2], total[3]);
    const __m512i sum = _mm512_slli_epi32(_mm512_add_epi32(a, b), 7);
    const __m512i before = _mm512_loadu_si512(correction);
    _mm512_storeu_si512(correction, _mm512_add_epi32(before, sum));
}

/* Fill a panel of 16 `vectors` outputs: for every four inputs (SIGN: 32), four bytes of each
 * output.
 * BYTE: adds to `correction` what `finish` subtracts. */
INLINE void fill_panel(const struct source *of, const int vectors, const enum product product,
                       __m512i *out, int32_t *correction)
{
    const int64_t expanded = product == BIT ? 8 : 1;
    for (int v = 0; v < vectors; v++) {
        __m512i total[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            total[i] = _mm512_setzero_si512();
        for (int64_t b = 0; b < of->bytes; b += 64) {
            __m512i r[16];
            load_rows(of, of->n0 + 16 * v, b, r);
            if (product == BYTE) /* a table is large, and no prefetcher follows sixteen rows */
                prefetch_rows(of, of->n0 + 16 * (v + 1), b);
            transpose(r);
            __m512i *to = out + b / 4 * expanded * vectors + v;
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                if (4 * i >= of->bytes - b)
                    break;
                if (product == BIT) {
#pragma GCC unroll 8
                    for (int j = 0; j < 8; j++)
                        to[(8 * i + j) * vectors] = expand(r[i], j);
                } else {
                    to[i * vectors] = r[i];
                    if (product == BYTE)
                        total[i % 4] = dot4(total[i % 4], _mm512_set1_epi8(1), r[i]);
                }
            }
        }
        if (product == BYTE)
            add_correction(total, correction + 16 * v);
    }
}

#endif
