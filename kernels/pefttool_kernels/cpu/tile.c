/* A rectangle of a 4-bit weight, dequantised: W[first_row..last_row, first_column..last_column] of a packed W [N, K].
 *
 * The layout is drawn in layout.py. The values are bitsandbytes' own, bit by bit: code * scale in float32, rounded to
 * nearest even; a nested scale is one product and one sum, never contracted (-ffp-contract=off).
 */
#include <immintrin.h>
#include <stdint.h>

#include "scales.h"

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))

enum dtype { FLOAT32, BFLOAT16, FLOAT16 };

int pefttool_has_avx512(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

/* float32 -> bfloat16, to nearest even, without the instruction that flushes small values to zero. */
AVX512 static inline __m256i to_bfloat16(__m512 values)
{
    __m512i bits = _mm512_castps_si512(values);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

AVX512 static inline void store(void *out, int64_t at, enum dtype dtype, __m512 values)
{
    if (dtype == FLOAT32)
        _mm512_storeu_ps((float *)out + at, values);
    else if (dtype == BFLOAT16)
        _mm256_storeu_si256((__m256i *)((uint16_t *)out + at), to_bfloat16(values));
    else
        _mm256_storeu_si256((__m256i *)((uint16_t *)out + at), _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
}

/* 64 weights that share a scale: sixteen at a time, high nibble first. */
AVX512 static inline void block(const uint8_t *packed, float scale, __m512 code, void *out, int64_t at,
                                enum dtype dtype)
{
    __m128i low = _mm_set1_epi8(15);
    __m512 scales = _mm512_set1_ps(scale);
    for (int part = 0; part < 4; part++) {
        __m128i bytes = _mm_loadl_epi64((const __m128i *)(packed + 8 * part));
        __m128i nibbles = _mm_unpacklo_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), low), _mm_and_si128(bytes, low));
        __m512 values = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(nibbles), code);
        store(out, at + 16 * part, dtype, _mm512_mul_ps(values, scales));
    }
}

/* in_features (K) and the columns are multiples of 64; `out` is [rows, columns], contiguous. */
AVX512 void pefttool_dequantize_tile(const uint8_t *packed, const void *absmax, const float *code,
                                     const float *nested_absmax, const float *nested_code, const float *offset,
                                     int64_t in_features, int64_t first_row, int64_t last_row, int64_t first_column,
                                     int64_t last_column, void *out, int dtype, int threads)
{
    int64_t blocks = in_features / BLOCK, columns = last_column - first_column;
    Scales scales = scales_of(absmax, nested_absmax, nested_code, offset);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t row = first_row; row < last_row; row++) {
        __m512 values = _mm512_loadu_ps(code);
        int64_t at = (row - first_row) * columns;
        for (int64_t column = first_column; column < last_column; column += BLOCK, at += BLOCK) {
            int64_t index = row * blocks + column / BLOCK;
            block(packed + index * (BLOCK / 2), scale_at(&scales, index), values, out, at, (enum dtype)dtype);
        }
    }
}
