/* AVX-512: what several kernels need. Compiles the including file for it up to END_TARGET. */
#ifndef BITMAPS_AVX512_VECTORS_H
#define BITMAPS_AVX512_VECTORS_H

#include "avx512.h"
#include "avx512_target.h"

/* acc + u s over four bytes a lane, u unsigned and s signed. In assembly, because gcc 12 spills
 * arrays of accumulators that it may combine with the intrinsic, which halves the speed.
 * tests/packed/test_machine_code.py checks that the sums stay in registers. */
INLINE __m512i dot4(__m512i acc, __m512i u, __m512i s)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
    return acc;
}

/* popcount(a xor b) */
INLINE __m512i differences(__m512i a, __m512i b)
{
    return _mm512_popcnt_epi32(_mm512_xor_si512(a, b));
}

/* The lanes of a vector that are there, if `left` or more are. */
INLINE __mmask16 lanes_of(int64_t left) { return _bzhi_u32(0xffff, left > 16 ? 16 : left); }

INLINE __m512 load_floats(const float *x, int64_t left)
{
    return _mm512_maskz_loadu_ps(lanes_of(left), x);
}

/* Four vectors of a row, of which `left` numbers are there, or more. */
INLINE void load_64(const float *x, int64_t left, const int whole, __m512 v[4])
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const float *from = x + 16 * i;
        if (whole)
            v[i] = _mm512_loadu_ps(from);
        else
            v[i] = left > 16 * i ? load_floats(from, left - 16 * i) : _mm512_setzero_ps();
    }
}

/* 64 whole numbers of eight bits or fewer as bytes. */
INLINE __m512i bytes_of(const __m512i q[4])
{
    const __m512i order
        = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]),
                                              _mm512_packs_epi32(q[2], q[3]));
    return _mm512_permutexvar_epi32(order, packed);
}

/* Sixteen rows of 64 bytes -> sixteen vectors; the j-th has the j-th four bytes of every row. */
INLINE void transpose(__m512i r[16])
{
    __m512i t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) { /* four by four within 128 bits */
        const __m512i a = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        const __m512i b = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        const __m512i c = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]);
        const __m512i d = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c);
        t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d);
        t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) { /* then blocks of 128 bits */
        const __m512i a = _mm512_shuffle_i32x4(t[j], t[j + 4], 0x44);
        const __m512i b = _mm512_shuffle_i32x4(t[j], t[j + 4], 0xee);
        const __m512i c = _mm512_shuffle_i32x4(t[j + 8], t[j + 12], 0x44);
        const __m512i d = _mm512_shuffle_i32x4(t[j + 8], t[j + 12], 0xee);
        r[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        r[j + 4] = _mm512_shuffle_i32x4(a, c, 0xdd);
        r[j + 8] = _mm512_shuffle_i32x4(b, d, 0x88);
        r[j + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}

/* What turns the products of 16 outputs into outputs. */
struct epilogue {
    __mmask16 mask; /* of those that are there */
    __m512 high, low, bias;
};

/* For outputs n to n + 15, of which those from n1 on are not there. */
INLINE struct epilogue epilogue_of(const struct matrix *w, int64_t n, int64_t n1)
{
    struct epilogue e;
    e.mask = n < n1 ? lanes_of(n1 - n) : 0;
    e.high = _mm512_maskz_loadu_ps(e.mask, w->high + n);
    e.low = w->low ? _mm512_maskz_loadu_ps(e.mask, w->low + n) : _mm512_setzero_ps();
    e.bias = w->bias ? _mm512_maskz_loadu_ps(e.mask, w->bias + n) : _mm512_setzero_ps();
    return e;
}

/* Write 16 outputs of token m to y, from what the kernel has added up:
 * BIT: dot products.
 * BYTE: dot products with activations + 128; `correction` is 128 times the sum of the weights.
 * SIGN: popcount(bits xor signs). */
INLINE void finish(__m512i acc, enum product product, const struct matrix *w, struct epilogue e,
                   const struct rows *x, int64_t m, __m512i correction, float *y)
{
    if (product == SIGN)
        acc = _mm512_sub_epi32(_mm512_set1_epi32(positive_signs(x, m)), acc);
    if (product == BYTE)
        acc = _mm512_sub_epi32(acc, correction);
    const __m512 sum = _mm512_set1_ps(x->sum[m]), scale = _mm512_set1_ps(x->scale[m]);
    __m512 value = _mm512_cvtepi32_ps(acc);
    if (w->low) {
        value = _mm512_mul_ps(_mm512_sub_ps(e.high, e.low), value);
        value = _mm512_add_ps(value, _mm512_mul_ps(e.low, sum));
    } else {
        if (product != BYTE) /* fused, and yet rounded once: twice the dot product is exact */
            value = _mm512_fmsub_ps(_mm512_set1_ps(2.0f), value, sum);
        value = _mm512_mul_ps(e.high, value);
    }
    __asm__("" : "+v"(value)); /* see `in_order` */
    value = _mm512_mul_ps(value, scale);
    __asm__("" : "+v"(value));
    _mm512_mask_storeu_ps(y, e.mask, w->bias ? _mm512_add_ps(value, e.bias) : value);
}

#endif
