/* Compiles the rest of the including file for AVX2. It ends in END_TARGET. No include guard. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "../kernels.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
#endif
