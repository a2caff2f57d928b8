/* AVX2: sums of four activations are looked up (tables.h).
 *
 * `vpshufb` looks 32 bytes up in a table of 16, which both halves of a register share: the sums of
 * 32 rows of weights in one group. Sums of several groups are added in 16 bits without unpacking
 * them. `all` adds whole lanes of two bytes, and `odd` adds their upper bytes. What `odd` has too
 * much of in `all` is subtracted in the end; in between, `all` may wrap around. */
#if defined(__x86_64__)
#include "avx2_vectors.h"

#include <stddef.h>

#include "../plain.h"
#include "../tables.h"

enum {
    ROWS_ABREAST = AVX2_LOOKUP_COLUMNS,
    TILE = 6,      /* tokens */
    GROUPS = 256,  /* that 16 bits hold: 256 * 252 < 2^16 */
    BYTES = 16,    /* of a row of weights that are transposed at once */
};

/* -- tables -- */

/* Two tables from eight activations. `clear` is what clear bits add. */
INLINE void write_tables(const uint8_t *u, __m256i clear, uint8_t *to)
{
    /* byte i of a half is activation b of its group where bit b of i is set */
    const __m256i bytes = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0,
                                           1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m256i eight = _mm256_set1_epi64x(*(const long long __attribute__((may_alias)) *)u);
    const __m256i groups = _mm256_setr_epi32(0, 0, 0, 0, 0x04040404, 0x04040404, 0x04040404,
                                             0x04040404);
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++) {
        const __m256i bit = _mm256_set1_epi8((char)(1 << b));
        const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
        const __m256i from = _mm256_add_epi8(groups, _mm256_set1_epi8((char)b));
        const __m256i activation = _mm256_shuffle_epi8(eight, from);
        sum = _mm256_add_epi8(sum, _mm256_blendv_epi8(clear, activation, set));
    }
    _mm256_storeu_si256((__m256i *)to, sum);
}

/* The numbers of a plane are written into the last quarter of its tables, and become tables from
 * the first on: a table ends before the next numbers begin. */
static void tabulate(const float *x, const struct rows *rows, int64_t m)
{
    const int64_t k = rows->k, padded = aligned(k);
    const struct rounding rounding = rounding_of(range_of(x, k), rows->act);
    int32_t total = 0;
    for (int plane = 0; plane < rows->planes; plane++) {
        const int shift = PLANE_BITS * (rows->planes - 1 - plane);
        uint8_t *tables = rows->q + m * rows->stride + plane * rows->plane;
        uint8_t *numbers = tables + (TABLE_BYTES - 1) * padded;
        total = 0; /* the same in each plane */
        for (int64_t j = 0; j < k; j++) {
            const int32_t q = (int32_t)rintf(x[j] * rounding.inverse);
            const uint32_t u = (uint32_t)q - (uint32_t)rounding.least;
            total += q;
            numbers[j] = (uint8_t)(u >> shift & PLANE_LARGEST);
        }
        const uint8_t clear = (uint8_t)(-rounding.least >> shift & PLANE_LARGEST);
        memset(numbers + k, clear, padded - k);
        for (int64_t j = 0; j < padded; j += 8)
            write_tables(numbers + j, _mm256_set1_epi8((char)clear), tables + TABLE_BYTES * j);
    }
    rows->scale[m] = rounding.scale;
    rows->sum[m] = (float)total;
    rows->base[m] = base_of_tables(rounding.least, (k + 7) / 8 * 8);
}

static void round_or_tabulate(const float *x, const struct rows *rows, int64_t m)
{
    if (rows->kind == INT8)
        avx2_row_operations.round(x, rows, m);
    else
        tabulate(x, rows, m);
}

/* -- indices -- */

/* The weights of a block. */
struct panel {
    __m256i *indices;  /* for every four inputs, a byte for each row: see `fill` */
    int64_t groups;    /* of four inputs */
};

/* Bytes `at` to `at` + 15 of row n, padded with zeros, as are rows that are not there. */
INLINE __m128i load_row(const struct block *b, int64_t n, int64_t at)
{
    const int64_t bytes = row_bytes(b->w);
    uint8_t padded[BYTES] = {0};
    const uint8_t *from = b->w->weight + n * bytes + at;
    if (n >= b->n1)
        return _mm_setzero_si128();
    if (bytes - at < BYTES)
        from = memcpy(padded, from, bytes - at);
    return _mm_loadu_si128((const __m128i *)from);
}

/* Sixteen vectors of 16 bytes in each half: byte i of vector j becomes byte j of vector i. */
INLINE void transpose_bytes(__m256i r[BYTES])
{
    for (int round = 0; round < 4; round++) {
        __m256i t[BYTES];
#pragma GCC unroll 8
        for (int i = 0; i < BYTES / 2; i++) {
            t[2 * i] = _mm256_unpacklo_epi8(r[i], r[i + BYTES / 2]);
            t[2 * i + 1] = _mm256_unpackhi_epi8(r[i], r[i + BYTES / 2]);
        }
        memcpy(r, t, sizeof t);
    }
}

/* The lower byte of lane j of two bytes is of row j in the first half of a vector and of row 16 + j
 * in the second, the upper byte of the row eight further. */
static void fill(const struct block *b, struct panel *p)
{
    const int64_t bytes = row_bytes(b->w);
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int64_t at = 0; at < bytes; at += BYTES) {
        __m256i r[BYTES];
        for (int i = 0; i < BYTES; i++) {
            const int64_t n = b->n0 + i / 2 + i % 2 * 8;
            r[i] = _mm256_set_m128i(load_row(b, n + 16, at), load_row(b, n, at));
        }
        transpose_bytes(r);
        for (int i = 0; i < BYTES && at + i < bytes; i++) {
            p->indices[2 * (at + i)] = _mm256_and_si256(r[i], nibble);
            p->indices[2 * (at + i) + 1] = _mm256_and_si256(_mm256_srli_epi16(r[i], 4), nibble);
        }
    }
    p->groups = 2 * bytes;
}

/* -- tiles -- */

/* For each token, the sums of rows 8 v to 8 v + 7. */
typedef __m256i sums[TILE][ROWS_ABREAST / 8];

/* In assembly, because gcc 12 moves sums through the stack otherwise. */
INLINE void look_up(__m256i table, __m256i index, __m256i *all, __m256i *odd)
{
    __m256i found;
    __asm__("vpshufb %4, %3, %2\n\tvpaddw %2, %0, %0\n\tvpsrlw $8, %2, %2\n\tvpaddw %2, %1, %1"
            : "+x"(*all), "+x"(*odd), "=&x"(found)
            : "x"(table), "x"(index));
}

/* Add the sums of groups `start` to `stop` - 1, at most GROUPS, of tokens whose tables are a. */
INLINE void add_groups(const uint8_t *const a[TILE], const struct panel *p, int64_t start,
                       int64_t stop, const int height, sums s)
{
    __m256i all[TILE], odd[TILE];
#pragma GCC unroll 6
    for (int i = 0; i < height; i++)
        all[i] = odd[i] = _mm256_setzero_si256();
    for (int64_t g = start; g < stop; g++) {
        const __m256i index = p->indices[g];
#pragma GCC unroll 6
        for (int i = 0; i < height; i++) {
            const __m128i table = _mm_load_si128((const __m128i *)(a[i] + 16 * g));
            look_up(_mm256_broadcastsi128_si256(table), index, all + i, odd + i);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < height; i++) {
        const __m256i even = _mm256_sub_epi16(all[i], _mm256_slli_epi16(odd[i], 8));
        const __m128i parts[] = {
            _mm256_castsi256_si128(even), _mm256_castsi256_si128(odd[i]),
            _mm256_extracti128_si256(even, 1), _mm256_extracti128_si256(odd[i], 1),
        };
        for (int v = 0; v < ROWS_ABREAST / 8; v++)
            s[i][v] = _mm256_add_epi32(s[i][v], _mm256_cvtepu16_epi32(parts[v]));
    }
}

/* A function for each height: if they are inlined into their caller, gcc 12 spills sums. */
typedef void add(const uint8_t *const a[TILE], const struct panel *, int64_t start, int64_t stop,
                 sums);

static NOINLINE void add_1(const uint8_t *const a[TILE], const struct panel *p, int64_t start,
                           int64_t stop, sums s)
{
    add_groups(a, p, start, stop, 1, s);
}

static NOINLINE void add_2(const uint8_t *const a[TILE], const struct panel *p, int64_t start,
                           int64_t stop, sums s)
{
    add_groups(a, p, start, stop, 2, s);
}

static NOINLINE void add_4(const uint8_t *const a[TILE], const struct panel *p, int64_t start,
                           int64_t stop, sums s)
{
    add_groups(a, p, start, stop, 4, s);
}

static NOINLINE void add_6(const uint8_t *const a[TILE], const struct panel *p, int64_t start,
                           int64_t stop, sums s)
{
    add_groups(a, p, start, stop, TILE, s);
}

/* `height` tokens from m on. */
static void tile(const struct block *b, int64_t m, int height, const struct panel *p)
{
    static add *const adders[TILE + 1] = {NULL, add_1, add_2, NULL, add_4, NULL, add_6};
    const struct rows *x = b->x;
    sums s;
    memset(s, 0, sizeof s);
    for (int plane = 0; plane < x->planes; plane++) {
        const uint8_t *a[TILE];
        for (int i = 0; i < height; i++) {
            a[i] = x->q + (m + i) * x->stride + plane * x->plane;
            for (int v = 0; v < ROWS_ABREAST / 8; v++)
                s[i][v] = _mm256_slli_epi32(s[i][v], PLANE_BITS);
        }
        for (int64_t g = 0; g < p->groups; g += GROUPS)
            adders[height](a, p, g, g + GROUPS < p->groups ? g + GROUPS : p->groups, s);
    }
    for (int v = 0; v < ROWS_ABREAST / 8 && b->n0 + 8 * v < b->n1; v++)
        for (int i = 0; i < height; i++) {
            const __m256i base = _mm256_set1_epi32(x->base[m + i]);
            write_outputs(b, m + i, b->n0 + 8 * v, _mm256_add_epi32(s[i][v], base));
        }
}

void avx2_lookup(const struct block *block, void *scratch)
{
    struct panel p = {.indices = scratch};
    struct block b = *block;
    for (b.n0 = block->n0; b.n0 < block->n1; b.n0 += ROWS_ABREAST) {
        b.n1 = b.n0 + ROWS_ABREAST < block->n1 ? b.n0 + ROWS_ABREAST : block->n1;
        fill(&b, &p);
        for (int64_t m = b.m0, height; m < b.m1; m += height) {
            const int64_t left = b.m1 - m;
            height = left >= TILE ? TILE : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            tile(&b, m, (int)height, &p);
        }
    }
}

const struct row_operations avx2_lookup_row_operations = {
    .round = round_or_tabulate,
    .sign = plain_sign_row,
    .gelu = plain_gelu,
    .add_norm = add_norm,
};
END_TARGET
#endif
