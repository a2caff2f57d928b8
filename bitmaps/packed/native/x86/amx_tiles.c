/* AMX: many tokens in products of tiles of 16 by 64 bytes. */
#include "../kernels.h"
#if defined(HAVE_AMX)
#include "amx.h"
#include "avx512_panel.h"
#if defined(__clang__) /* AVX-512 as before, and AMX */
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vpopcntdq,avx512vbmi,avx2,fma,bmi,bmi2,popcnt,amx-tile,amx-int8"))), apply_to = function)
#else
#pragma GCC target("amx-tile,amx-int8")
#endif

enum {
    SIDE = 16,        /* rows of a tile */
    STEP = 64,        /* inputs of a product of tiles */
    STRIP = 2 * SIDE, /* tokens, and outputs, of the four tiles of sums */
    CHUNK = 1024,     /* inputs of a panel, which stays in the first cache */
    VECTORS = STRIP / 16,
};

struct scratch {
    int32_t sums[2][ROWS][STRIP]; /* of both planes */
    __m512i weights[VECTORS * CHUNK / 4];
    int32_t correction[STRIP];
};

int64_t amx_scratch(int64_t k)
{
    const int64_t vectors = avx512_scratch(k), tiles = sizeof(struct scratch);
    return vectors > tiles ? vectors : tiles;
}

struct configuration {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

/* Set the shapes of the tiles for `count` tokens, at most 32. Tiles 0 and 1 are the sums of the
 * first 16 tokens, 2 and 3 those of the others, for both halves of the outputs. Tiles 4 and 5
 * are the activations of the first and of the other tokens, 6 and 7 the weights of both halves. */
static void configure(int64_t count)
{
    const uint8_t first = count < SIDE ? count : SIDE, second = count > SIDE ? count - SIDE : 1;
    const struct configuration tiles = {
        .palette = 1,
        .bytes = {64, 64, 64, 64, 64, 64, 64, 64},
        .rows = {first, first, second, second, first, second, SIDE, SIDE},
    };
    /* gcc 12's intrinsic claims to read eight bytes only */
    __asm__ volatile("ldtilecfg %0" : : "m"(tiles));
}

/* Tiles have to be named by literals, which rules out a function. */
#define MULTIPLY(C, A, B) do if (int8) _tile_dpbusd(C, A, B); else _tile_dpbsud(C, A, B); while (0)

/* `count` tokens by 32 outputs and k inputs, added to the sums if there are `some`. In a panel,
 * as in a tile, a row has four inputs of sixteen outputs. Activations are signed bytes and
 * weights bits, or, with int8, activations + 128 are unsigned and weights signed bytes. */
INLINE void tile_sums(const uint8_t *a, int64_t stride, const __m512i *b, int64_t k, int64_t count,
                      const int int8, int some, int32_t sums[][STRIP])
{
    const int64_t row = sizeof sums[0], panel = STRIP * 4;
    const int two = count > SIDE;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (some) {
        _tile_loadd(0, sums[0], row);
        _tile_loadd(1, sums[0] + SIDE, row);
        if (two) {
            _tile_loadd(2, sums[SIDE], row);
            _tile_loadd(3, sums[SIDE] + SIDE, row);
        }
    }
    for (int64_t s = 0; s < k; s += STEP, b += STEP / 4 * VECTORS) {
        _tile_loadd(4, a + s, stride);
        _tile_loadd(6, b, panel);
        MULTIPLY(0, 4, 6);
        _tile_loadd(7, b + 1, panel);
        MULTIPLY(1, 4, 7);
        if (two) {
            _tile_loadd(5, a + SIDE * stride + s, stride);
            MULTIPLY(2, 5, 6);
            MULTIPLY(3, 5, 7);
        }
    }
    _tile_stored(0, sums[0], row);
    _tile_stored(1, sums[0] + SIDE, row);
    if (two) {
        _tile_stored(2, sums[SIDE], row);
        _tile_stored(3, sums[SIDE] + SIDE, row);
    }
}

/* From the sums of tokens m to m + count - 1 to outputs n to end - 1. */
INLINE void write_outputs(const struct block *b, int64_t m, int64_t count, int64_t n, int64_t end,
                          const struct scratch *s, const enum product product)
{
    const struct rows *x = b->x;
    for (int64_t v = n; v < end; v += SIDE) {
        const struct epilogue e = epilogue_of(b->w, v, end);
        const __m512i correction = _mm512_loadu_si512(s->correction + (v - n));
        for (int64_t i = m; i < m + count; i++) {
            __m512i sum = _mm512_loadu_si512(s->sums[0][i - b->m0] + (v - n));
            if (x->planes == 2) {
                const __m512i low = _mm512_loadu_si512(s->sums[1][i - b->m0] + (v - n));
                sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8), low);
            }
            finish(sum, product, b->w, e, x, i, correction, b->y + i * b->ldy + v);
        }
    }
}

/* The panel of inputs k0 to k0 + k - 1, padded with zeros to whole tiles. */
INLINE void prepare_panel(const struct block *b, int64_t n, int64_t end, int64_t k0, int64_t k,
                          struct scratch *s, const enum product product)
{
    const int64_t inputs = product == BIT ? 8 : 1; /* of a byte of weights */
    const int64_t bytes = (k + inputs - 1) / inputs;
    const int64_t there = (bytes + 3) / 4 * inputs, wanted = (k + STEP - 1) / STEP * (STEP / 4);
    const struct source source = {b->w, n, end, k0 / inputs, bytes};
    fill_panel(&source, VECTORS, product, s->weights, s->correction);
    memset(s->weights + there * VECTORS, 0, (wanted - there) * VECTORS * sizeof *s->weights);
    __asm__ volatile("" : : : "memory"); /* gcc 12 does not know that loading a tile reads memory */
}

/* Otherwise the stores would wait for the output's cache lines. */
INLINE void prefetch_outputs(const struct block *b, int64_t m, int64_t count, int64_t n)
{
    for (int64_t i = m; i < m + count; i++) {
        __builtin_prefetch(b->y + i * b->ldy + n, 1);
        __builtin_prefetch(b->y + i * b->ldy + n + SIDE, 1);
    }
}

/* One panel of weights at a time, for all tokens of the block. */
INLINE void multiply_panels(const struct block *b, struct scratch *s, const enum product product)
{
    const struct rows *x = b->x;
    int64_t configured = 0;
    for (int64_t n = b->n0; n < b->n1; n += STRIP) {
        const int64_t end = n + STRIP < b->n1 ? n + STRIP : b->n1;
        memset(s->correction, 0, sizeof s->correction);
        for (int64_t k0 = 0; k0 < x->k; k0 += CHUNK) {
            const int64_t k = x->k - k0 < CHUNK ? x->k - k0 : CHUNK;
            const int last = k0 + k == x->k;
            prepare_panel(b, n, end, k0, k, s, product);
            for (int64_t m = b->m0, count; m < b->m1; m += count) {
                count = b->m1 - m < STRIP ? b->m1 - m : STRIP;
                if (count != configured)
                    configure(configured = count);
                if (last)
                    prefetch_outputs(b, m, count, n);
                for (int plane = 0; plane < x->planes; plane++) {
                    const uint8_t *a = x->q + m * x->stride + plane * x->plane + k0;
                    tile_sums(a, x->stride, s->weights, k, count, product == BYTE, k0 > 0,
                              s->sums[plane] + (m - b->m0));
                }
                if (last)
                    write_outputs(b, m, count, n, end, s, product);
            }
        }
    }
    _tile_release();
}

void amx_panels(const struct block *b, enum product product, void *scratch)
{
    if (product == BYTE)
        multiply_panels(b, scratch, BYTE);
    else
        multiply_panels(b, scratch, BIT);
}
END_TARGET
#endif
