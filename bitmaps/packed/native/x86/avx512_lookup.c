/* AVX-512 with VBMI: sums of four activations are looked up (tables.h).
 *
 * `vpermb` looks 64 bytes up in a table of 64: four groups of sixteen sums. An index vector has
 * four bytes for each of sixteen rows of weights, one for each group. So `vpdpbusd` with ones adds
 * the four sums of each row to its lane. */
#if defined(__x86_64__)
#include "avx512_tiles.h"

#include "../tables.h"

enum { TILE = 6 }; /* tokens */

/* Inputs that are looked up; those from k on are zeros. */
INLINE int64_t inputs_of(int64_t k) { return (k + 31) / 32 * 32; }

/* -- tables -- */

/* Byte i of the result is `first` + `step` * (i / 4). */
INLINE __m512i every_fourth(int first, int step)
{
    int8_t bytes[64];
#pragma GCC unroll 64
    for (int i = 0; i < 64; i++)
        bytes[i] = (int8_t)(first + step * (i / 4));
    return _mm512_loadu_si512(bytes);
}

/* The two tables of 32 activations, which are the bytes from `at` on of u. In the first, group g
 * has activations 8 g to 8 g + 3; in the second, the four after them: see `write_indices`. `clear`
 * is what clear bits add. */
INLINE void write_tables(__m512i u, __m512i clear, const int at, __m512i to[2])
{
    /* pairs[4 p + c]: of activations 2 p and 2 p + 1 those that bits 0 and 1 of c choose */
    const __m512i first
        = _mm512_mask_permutexvar_epi8(clear, 0xaaaaaaaaaaaaaaaa, every_fourth(at, 2), u);
    const __m512i second
        = _mm512_mask_permutexvar_epi8(clear, 0xcccccccccccccccc, every_fourth(at + 1, 2), u);
    const __m512i pairs = _mm512_add_epi8(first, second);
    int8_t low[64], high[64];
#pragma GCC unroll 64
    for (int i = 0; i < 64; i++) {
        low[i] = (int8_t)(i / 16 * 16 + i % 4);
        high[i] = (int8_t)(i / 16 * 16 + 4 + i % 16 / 4);
    }
    const __m512i eight = _mm512_set1_epi8(8);
    const __m512i of_low = _mm512_loadu_si512(low), of_high = _mm512_loadu_si512(high);
    const __m512i a = _mm512_permutexvar_epi8(of_low, pairs);
    const __m512i b = _mm512_permutexvar_epi8(of_high, pairs);
    const __m512i c = _mm512_permutexvar_epi8(_mm512_add_epi8(of_low, eight), pairs);
    const __m512i d = _mm512_permutexvar_epi8(_mm512_add_epi8(of_high, eight), pairs);
    _mm512_store_si512(to, _mm512_add_epi8(a, b));
    _mm512_store_si512(to + 1, _mm512_add_epi8(c, d));
}

/* The tables of 64 numbers, in each plane. */
INLINE void tabulate(const __m512i u[4], int32_t clear, const int planes, uint8_t *to,
                     int64_t plane)
{
#pragma GCC unroll 3
    for (int p = 0; p < planes; p++) {
        const int shift = PLANE_BITS * (planes - 1 - p);
        const __m512i of_clear = _mm512_set1_epi8((char)(clear >> shift & PLANE_LARGEST));
        __m512i part[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            part[i] = _mm512_and_si512(_mm512_srli_epi32(u[i], shift),
                                       _mm512_set1_epi32(PLANE_LARGEST));
        const __m512i bytes = bytes_of(part);
        __m512i *tables = (__m512i *)(to + p * plane);
        write_tables(bytes, of_clear, 0, tables);
        write_tables(bytes, of_clear, 32, tables + 2);
    }
}

INLINE void tabulate_row(const float *x, const struct rows *rows, int64_t m, const int planes)
{
    const int64_t k = rows->k;
    const struct rounding rounding = avx512_rounding(x, k, rows->act);
    const __m512 times = _mm512_set1_ps(rounding.inverse);
    const __m512i least = _mm512_set1_epi32(rounding.least);
    uint8_t *to = rows->q + m * rows->stride;
    __m512i total = _mm512_setzero_si512();
    for (int64_t j = 0; j < k; j += 64, to += 64 * TABLE_BYTES) {
        __m512 v[4];
        __m512i u[4];
        if (k - j >= 64)
            load_64(x + j, 64, 1, v);
        else
            load_64(x + j, k - j, 0, v);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], times));
            total = _mm512_add_epi32(total, q);
            u[i] = _mm512_sub_epi32(q, least);
        }
        tabulate(u, -rounding.least, planes, to, rows->plane);
    }
    rows->scale[m] = rounding.scale;
    rows->sum[m] = (float)_mm512_reduce_add_epi32(total);
    rows->base[m] = base_of_tables(rounding.least, inputs_of(k));
}

static void round_or_tabulate(const float *x, const struct rows *rows, int64_t m)
{
    if (rows->kind == INT8)
        avx512_row_operations.round(x, rows, m);
    else if (rows->planes == 1)
        tabulate_row(x, rows, m, 1);
    else if (rows->planes == 2)
        tabulate_row(x, rows, m, 2);
    else
        tabulate_row(x, rows, m, 3);
}

/* -- indices -- */

/* The indices of 16 inputs: bits 4 `half` to 4 `half` + 3 of each byte of the weights. Of the four
 * bytes of a row, each looks up in a group of its own. */
INLINE __m512i indices_of(__m512i bits, const int half)
{
    const __m512i nibbles = _mm512_set1_epi8(0x0f), groups = _mm512_set1_epi32(0x30201000);
    enum { A_AND_B_OR_C = 0xea };
    return _mm512_ternarylogic_epi32(half ? _mm512_srli_epi32(bits, 4) : bits, nibbles, groups,
                                     A_AND_B_OR_C);
}

/* The first tile of outputs n to n + 15, a multiple of 16. The next one has the next 32 inputs. */
INLINE const __m512i *tile_of(const struct matrix *w, int64_t n)
{
    return (const __m512i *)(w->weight + n * row_bytes(w));
}

INLINE void store_indices(__m512i bits, __m512i *to)
{
    _mm512_store_si512(to, indices_of(bits, 0));
    _mm512_store_si512(to + VECTORS, indices_of(bits, 1));
}

/* The indices of a block's weights: for every 16 inputs a vector for each 16 outputs. */
static void fill_indices(const struct block *b, __m512i *to)
{
    const struct source source = {b->w, b->n0, b->n1, 0, row_bytes(b->w)};
    for (int v = 0; v < VECTORS; v++) {
        if (b->w->tiled) {
            const __m512i *bits = tile_of(b->w, b->n0 + 16 * v);
            for (int64_t i = 0; b->n0 + 16 * v < b->n1 && i < source.bytes / 4; i++)
                store_indices(_mm512_loadu_si512(bits + i), to + 2 * i * VECTORS + v);
            continue;
        }
        for (int64_t at = 0; at < source.bytes; at += 64) {
            __m512i r[16];
            load_rows(&source, b->n0 + 16 * v, at, r);
            transpose(r);
            __m512i *from = to + at / 2 * VECTORS + v;
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                if (4 * i >= source.bytes - at)
                    break;
                store_indices(r[i], from + 2 * i * VECTORS);
            }
        }
    }
}

/* -- tiles -- */

/* The weights of a block. */
struct panel {
    const __m512i *indices;
    int64_t steps; /* of 16 inputs each */
};

/* `height` tokens by 64 outputs: 24 sums, four indices, a table, ones and a result fill the 32
 * registers. */
INLINE void tile_sums(const uint8_t *const a[TILE], const struct rows *x, const struct panel *p,
                      const int height, __m512i c[TILE][VECTORS])
{
    const __m512i ones = _mm512_set1_epi8(1);
    clear_sums(height, c);
    for (int plane = 0; plane < x->planes; plane++) {
        if (plane)
            shift_sums(PLANE_BITS, height, c);
        const __m512i *b = p->indices;
        const int64_t start = plane * x->plane, end = start + 64 * p->steps;
        for (int64_t s = start; s < end; s += 64, b += VECTORS) {
            const __m512i b0 = b[0], b1 = b[1], b2 = b[2], b3 = b[3];
#pragma GCC unroll 6
            for (int i = 0; i < height; i++) {
                const __m512i table = _mm512_load_si512(a[i] + s);
                c[i][0] = dot4(c[i][0], _mm512_permutexvar_epi8(b0, table), ones);
                c[i][1] = dot4(c[i][1], _mm512_permutexvar_epi8(b1, table), ones);
                c[i][2] = dot4(c[i][2], _mm512_permutexvar_epi8(b2, table), ones);
                c[i][3] = dot4(c[i][3], _mm512_permutexvar_epi8(b3, table), ones);
            }
        }
    }
}

/* Write outputs n to n + 15 of token m from the sums of its tables. */
INLINE void finish_sums(__m512i sums, const struct block *b, struct epilogue e, int64_t m,
                        int64_t n)
{
    const __m512i dots = _mm512_add_epi32(sums, _mm512_set1_epi32(b->x->base[m]));
    finish(dots, BIT, b->w, e, b->x, m, _mm512_setzero_si512(), b->y + m * b->ldy + n);
}

/* Tokens m to m + height - 1. */
INLINE void tile(const struct block *b, int64_t m, const struct panel *p, const int height)
{
    const struct rows *x = b->x;
    const uint8_t *a[TILE];
    __m512i c[TILE][VECTORS];
    find_rows(b, m, height, a);
    tile_sums(a, x, p, height, c);
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
        const int64_t n = b->n0 + 16 * v;
        const struct epilogue e = epilogue_of(b->w, n, b->n1);
#pragma GCC unroll 6
        for (int i = 0; i < height; i++)
            finish_sums(c[i][v], b, e, m + i, n);
    }
}

/* One function for each height: if they are inlined into their caller, gcc 12 spills sums. */
typedef void run_tile(const struct block *, int64_t m, const struct panel *);

static NOINLINE void tile_1(const struct block *b, int64_t m, const struct panel *p)
{
    tile(b, m, p, 1);
}

static NOINLINE void tile_2(const struct block *b, int64_t m, const struct panel *p)
{
    tile(b, m, p, 2);
}

static NOINLINE void tile_3(const struct block *b, int64_t m, const struct panel *p)
{
    tile(b, m, p, 3);
}

static NOINLINE void tile_4(const struct block *b, int64_t m, const struct panel *p)
{
    tile(b, m, p, 4);
}

static NOINLINE void tile_5(const struct block *b, int64_t m, const struct panel *p)
{
    tile(b, m, p, 5);
}

static NOINLINE void tile_6(const struct block *b, int64_t m, const struct panel *p)
{
    tile(b, m, p, TILE);
}

/* -- tiled weights, one token -- */

/* 16 `vectors` outputs from n on, without a panel: an index is used once. */
INLINE void single(const struct block *b, int64_t n, const int vectors, const int planes)
{
    const __m512i ones = _mm512_set1_epi8(1);
    const __m512i *tables = (const __m512i *)(b->x->q + b->m0 * b->x->stride);
    const int64_t words = row_bytes(b->w) / 4, plane = b->x->plane / 64;
    const __m512i *bits = tile_of(b->w, n);
    __m512i c[3][VECTORS];
#pragma GCC unroll 3
    for (int p = 0; p < planes; p++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            c[p][v] = _mm512_setzero_si512();
    for (int64_t i = 0; i < words; i++, bits++, tables += 2)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            __m512i indices[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                indices[v] = indices_of(_mm512_loadu_si512(bits + v * words), half);
#pragma GCC unroll 3
            for (int p = 0; p < planes; p++) {
                const __m512i table = _mm512_load_si512(tables + p * plane + half);
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++)
                    c[p][v] = dot4(c[p][v], _mm512_permutexvar_epi8(indices[v], table), ones);
            }
        }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        __m512i sums = c[0][v];
#pragma GCC unroll 3
        for (int p = 1; p < planes; p++)
            sums = _mm512_add_epi32(_mm512_slli_epi32(sums, PLANE_BITS), c[p][v]);
        finish_sums(sums, b, epilogue_of(b->w, n + 16 * v, b->n1), b->m0, n + 16 * v);
    }
}

INLINE void singles(const struct block *block, const int planes)
{
    const struct block b = *block;
    int64_t n = b.n0;
    for (; n + AVX512_COLUMNS <= b.n1; n += AVX512_COLUMNS)
        single(&b, n, VECTORS, planes);
    for (; n < b.n1; n += 16)
        single(&b, n, 1, planes);
}

static NOINLINE void singles_1(const struct block *b) { singles(b, 1); }
static NOINLINE void singles_2(const struct block *b) { singles(b, 2); }
static NOINLINE void singles_3(const struct block *b) { singles(b, 3); }

static void multiply(const struct block *b, void *scratch)
{
    static run_tile *const tiles[TILE + 1] = {NULL, tile_1, tile_2, tile_3, tile_4, tile_5, tile_6};
    if (!has_tables(b->x->act, b->x->kind)) {
        avx512_multiply(b, scratch);
        return;
    }
    if (b->w->tiled && b->m1 - b->m0 == 1) {
        (b->x->planes == 1 ? singles_1 : b->x->planes == 2 ? singles_2 : singles_3)(b);
        return;
    }
    __m512i *indices = scratch;
    const struct panel p = {indices, inputs_of(b->w->k) / 16};
    struct block part = *b;
    for (part.n0 = b->n0; part.n0 < b->n1; part.n0 += AVX512_COLUMNS) {
        part.n1 = part.n0 + AVX512_COLUMNS < b->n1 ? part.n0 + AVX512_COLUMNS : b->n1;
        fill_indices(&part, indices);
        for (int64_t m = b->m0; m < b->m1; m += TILE)
            tiles[b->m1 - m < TILE ? b->m1 - m : TILE](&part, m, &p);
    }
}

static const struct row_operations ROW_OPERATIONS = {
    .round = round_or_tabulate,
    .sign = avx512_sign,
    .gelu = avx512_gelu,
    .add_norm = add_norm,
};

const struct isa bitmaps_avx512_lookup = {
    .name = "avx512_lookup",
    .runs = avx512_runs,
    .columns = AVX512_COLUMNS,
    .few = AVX512_FEW,
    .signs = AVX512_SIGNS,
    .offsets_int8 = 1,
    .layout = layout_of_tables,
    .scratch = avx512_scratch,
    .multiply = multiply,
    .rows = &ROW_OPERATIONS,
    .attention = &avx512_attention,
    .tiles = 1,
};
END_TARGET
#endif
