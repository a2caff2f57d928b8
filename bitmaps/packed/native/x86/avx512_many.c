/* AVX-512, many tokens: 64 rows of weights are unpacked into a panel, which is then multiplied
 * with six tokens at a time. */
#if defined(__x86_64__)
#include "avx512_tiles.h"

enum { TILE = 6, SIGN_TILE = 4 }; /* tokens */

/* The weights of a block, unpacked. */
struct panel {
    const __m512i *weights;
    const int32_t *correction;
    int64_t steps; /* of four inputs each (SIGN: 32) */
};

INLINE __m512i broadcast(const uint8_t *bytes)
{
    int32_t word;
    memcpy(&word, bytes, 4);
    return _mm512_set1_epi32(word);
}

/* `height` tokens by 64 outputs. With six tokens, 24 accumulators, four vectors of weights and
 * one of activations fill the 32 registers. */
INLINE void tile_bytes(const uint8_t *const a[TILE], const struct rows *x, const struct panel *p,
                       const int height, const int int8, __m512i c[TILE][VECTORS])
{
    clear_sums(height, c);
    for (int plane = 0; plane < x->planes; plane++) {
        if (plane)
            shift_sums(8, height, c);
        const __m512i *b = p->weights;
        const int64_t start = plane * x->plane, end = start + 4 * p->steps;
        for (int64_t s = start; s < end; s += 4, b += VECTORS) {
            const __m512i b0 = b[0], b1 = b[1], b2 = b[2], b3 = b[3];
#pragma GCC unroll 6
            for (int i = 0; i < height; i++) {
                const __m512i q = broadcast(a[i] + s);
                c[i][0] = int8 ? dot4(c[i][0], q, b0) : dot4(c[i][0], b0, q);
                c[i][1] = int8 ? dot4(c[i][1], q, b1) : dot4(c[i][1], b1, q);
                c[i][2] = int8 ? dot4(c[i][2], q, b2) : dot4(c[i][2], b2, q);
                c[i][3] = int8 ? dot4(c[i][3], q, b3) : dot4(c[i][3], b3, q);
            }
        }
    }
}

/* The same by popcount. At most four tokens, because the differences need registers too. */
INLINE void tile_signs(const uint8_t *const a[TILE], const struct panel *p, const int height,
                       __m512i c[TILE][VECTORS])
{
    clear_sums(height, c);
    const __m512i *b = p->weights;
    for (int64_t s = 0; s < p->steps; s++, b += VECTORS) {
        const __m512i b0 = b[0], b1 = b[1], b2 = b[2], b3 = b[3];
#pragma GCC unroll 4
        for (int i = 0; i < height; i++) {
            const __m512i q = broadcast(a[i] + 4 * s);
            c[i][0] = _mm512_add_epi32(c[i][0], differences(b0, q));
            c[i][1] = _mm512_add_epi32(c[i][1], differences(b1, q));
            c[i][2] = _mm512_add_epi32(c[i][2], differences(b2, q));
            c[i][3] = _mm512_add_epi32(c[i][3], differences(b3, q));
        }
    }
}

/* Tokens m to m + height - 1, of which those from m1 on are not there. */
INLINE void tile(const struct block *b, int64_t m, const struct panel *p, const int height,
                 const enum product product)
{
    const struct rows *x = b->x;
    const uint8_t *a[TILE];
    __m512i c[TILE][VECTORS];
    find_rows(b, m, height, a);
    if (product == SIGN)
        tile_signs(a, p, height, c);
    else
        tile_bytes(a, x, p, height, product == BYTE, c);
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
        const int64_t n = b->n0 + 16 * v;
        const struct epilogue e = epilogue_of(b->w, n, b->n1);
        const __m512i correction
            = product == BYTE ? _mm512_loadu_si512(p->correction + 16 * v) : _mm512_setzero_si512();
#pragma GCC unroll 6
        for (int i = 0; i < height; i++)
            if (m + i < b->m1)
                finish(c[i][v], product, b->w, e, x, m + i, correction,
                       b->y + (m + i) * b->ldy + n);
    }
}

/* One function for each height: if they are inlined into their caller, gcc 12 spills
 * accumulators. */
typedef void run_tile(const struct block *, int64_t m, const struct panel *);

static NOINLINE void six_bits(const struct block *b, int64_t m, const struct panel *p)
{
    tile(b, m, p, TILE, BIT);
}

static NOINLINE void four_bits(const struct block *b, int64_t m, const struct panel *p)
{
    tile(b, m, p, 4, BIT);
}

static NOINLINE void two_bits(const struct block *b, int64_t m, const struct panel *p)
{
    tile(b, m, p, 2, BIT);
}

static NOINLINE void six_bytes(const struct block *b, int64_t m, const struct panel *p)
{
    tile(b, m, p, TILE, BYTE);
}

static NOINLINE void four_bytes(const struct block *b, int64_t m, const struct panel *p)
{
    tile(b, m, p, 4, BYTE);
}

static NOINLINE void two_bytes(const struct block *b, int64_t m, const struct panel *p)
{
    tile(b, m, p, 2, BYTE);
}

static NOINLINE void four_signs(const struct block *b, int64_t m, const struct panel *p)
{
    tile(b, m, p, SIGN_TILE, SIGN);
}

/* Six tokens at a time, and the rest in the smallest tile that holds them. */
INLINE void tiles(const struct block *b, const struct panel *p, run_tile *six, run_tile *four,
                  run_tile *two)
{
    for (int64_t m = b->m0; m < b->m1; m += TILE)
        (b->m1 - m > 4 ? six : b->m1 - m > 2 ? four : two)(b, m, p);
}

void avx512_many(const struct block *b, enum product product, void *scratch)
{
    int32_t *correction = scratch;
    __m512i *weights = (__m512i *)(correction + AVX512_COLUMNS);
    const struct source source = {b->w, b->n0, b->n1, 0, row_bytes(b->w)};
    const int64_t inputs = product == SIGN ? 32 : 4;
    const struct panel p = {weights, correction, (b->w->k + inputs - 1) / inputs};
    if (product == SIGN) {
        fill_panel(&source, VECTORS, SIGN, weights, correction);
        for (int64_t m = b->m0; m < b->m1; m += SIGN_TILE)
            four_signs(b, m, &p);
    } else if (product == BYTE) {
        memset(correction, 0, AVX512_COLUMNS * sizeof *correction);
        fill_panel(&source, VECTORS, BYTE, weights, correction);
        tiles(b, &p, six_bytes, four_bytes, two_bytes);
    } else {
        fill_panel(&source, VECTORS, BIT, weights, correction);
        tiles(b, &p, six_bits, four_bits, two_bits);
    }
}
END_TARGET
#endif
