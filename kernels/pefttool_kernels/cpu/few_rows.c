/* x [m, k] times a packed 4-bit W [n, k], transposed, for few rows of x: generation, evaluation, short batches.
 *
 * The weight is read once, in bitsandbytes' plain layout (drawn in layout.py), and dequantised to exactly the bfloat16
 * values that bitsandbytes gives; products accumulate in float32; the output is rounded once.
 *
 * The 64 weights of a block have 16 different values: code * scale, rounded. They are computed once for the block, and
 * looked up 32 at a time. High nibbles are even elements, low ones odd; instead of interleaving them for every weight,
 * x is rearranged once: evens before odds in every run of 64.
 *
 * Up to DIRECT_ROWS rows, weights are used in the registers where they were dequantised. Beyond that, a panel of PANEL
 * features times CHUNK inputs is dequantised into the first-level cache and used by every row.
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "scales.h"

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define INLINE static inline __attribute__((always_inline))
#define BLOCK_BYTES 32
#define LANES 32      /* bfloat16 values in a register */
#define ROWS 6        /* rows of x times GROUP features: 24 of the 32 registers hold sums */
#define GROUP 4
#define PANEL 16
#define CHUNK 512
#define PASS 8        /* rows of x that are computed together where weights stay in registers */
#define DIRECT_ROWS 8
#define AHEAD 8192    /* bytes of W that are asked for before they are used */
#define SUM_FLOATS 16 /* a sum stays spread over a register until all of k has been seen */

typedef struct {
    int64_t n, k;
    const uint8_t *packed;
    Scales scales;
    __m512 code;
} Weight;

typedef struct {
    const float *start, *bias; /* [m, n] and [n], or NULL */
    uint16_t *out;             /* [m, n] */
} Output;

int pefttool_has_avx512_bf16(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16");
}

AVX512 INLINE __m512bh load(const uint16_t *values)
{
    return (__m512bh)_mm512_loadu_si512(values);
}

typedef struct {
    __m512bh even, odd;
} Block;

/* A block of 64 weights. A lookup takes the low five bits of a word: the table holds its 16 values twice. */
AVX512 INLINE Block dequantise(const uint8_t *packed, float scale, __m512 code)
{
    __m512 values = _mm512_mul_ps(code, _mm512_set1_ps(scale));
    __m512i table = (__m512i)_mm512_cvtne2ps_pbh(values, values);
    __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)packed));
    Block block = {(__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), table),
                   (__m512bh)_mm512_permutexvar_epi16(bytes, table)};
    return block;
}

/* The lanes of each of four registers, summed: (a, b, c, d). Every step halves the sums' spread and joins two. */
AVX512 INLINE __m128 sum_lanes(__m512 a, __m512 b, __m512 c, __m512 d)
{
    __m512 ab = _mm512_add_ps(_mm512_mask_blend_ps(0xAAAA, a, b),
                              _mm512_permute_ps(_mm512_mask_blend_ps(0x5555, a, b), 0xB1));
    __m512 cd = _mm512_add_ps(_mm512_mask_blend_ps(0xAAAA, c, d),
                              _mm512_permute_ps(_mm512_mask_blend_ps(0x5555, c, d), 0xB1));
    __m512 all = _mm512_add_ps(_mm512_mask_blend_ps(0xCCCC, ab, cd),
                               _mm512_permute_ps(_mm512_mask_blend_ps(0x3333, ab, cd), 0x4E));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* float32 -> bfloat16, to nearest even; NaN stays NaN. */
AVX512 INLINE __m128i to_bfloat16(__m128 values)
{
    __m128i bits = _mm_castps_si128(values), high = _mm_srli_epi32(bits, 16);
    __m128i even = _mm_add_epi32(_mm_and_si128(high, _mm_set1_epi32(1)), _mm_set1_epi32(0x7fff));
    __m128i rounded = _mm_srli_epi32(_mm_add_epi32(bits, even), 16);
    return _mm_mask_or_epi32(rounded, _mm_cmp_ps_mask(values, values, _CMP_UNORD_Q), high, _mm_set1_epi32(0x40));
}

/* Up to four neighbouring sums of a row, `count` of them, with what they start from. */
AVX512 INLINE void put(const Output *output, int64_t n, int64_t row, int64_t feature, int64_t count, __m128 sums)
{
    int64_t at = row * n + feature;
    __mmask8 mask = count < GROUP ? (__mmask8)((1u << count) - 1) : 0xF;
    __m128 bias = output->bias ? _mm_maskz_loadu_ps(mask, output->bias + feature) : _mm_setzero_ps();
    __m128 start = output->start ? _mm_maskz_loadu_ps(mask, output->start + at) : _mm_setzero_ps();
    _mm_mask_cvtepi32_storeu_epi16(output->out + at, mask, to_bfloat16(_mm_add_ps(sums, _mm_add_ps(bias, start))));
}

/* The scales of `count` blocks from `first`, decoded sixteen at a time where they share an outer scale. */
AVX512 static void decode(const Scales *scales, int64_t first, int64_t count, float *out)
{
    int64_t i = 0;
    if (!scales->nested_absmax) {
        memcpy(out, (const float *)scales->absmax + first, count * sizeof(float));
        return;
    }
    const uint8_t *codes = (const uint8_t *)scales->absmax + first;
    while (i < count) {
        int64_t outer = (first + i) >> NESTED_SHIFT, end = ((outer + 1) << NESTED_SHIFT) - first;
        __m512 factor = _mm512_set1_ps(scales->nested_absmax[outer]), offset = _mm512_set1_ps(scales->offset);
        if (end > count)
            end = count;
        for (; i + 16 <= end; i += 16) {
            __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + i)));
            __m512 inner = _mm512_i32gather_ps(index, scales->nested_code, 4);
            _mm512_storeu_ps(out + i, _mm512_add_ps(_mm512_mul_ps(inner, factor), offset));
        }
        for (; i < end; i++)
            out[i] = scale_at(scales, first + i);
    }
}

/* -- few rows: every weight is used where it was dequantised ------------------------------------------------------- */

typedef struct {
    const uint8_t *packed[GROUP]; /* past the end of W the last feature again, computed and not stored */
    const float *scales[GROUP];   /* [k / BLOCK] each */
} Group;

/* `rows` rows of x from `row`, with the features from `start` to `end` of a group. All but x and row are constants. */
AVX512 INLINE void direct(const int rows, const int start, const int end, const Weight *w, const Group *group,
                          const uint16_t *x, int64_t m, int64_t row, int64_t first, const Output *output)
{
    int64_t blocks = w->k / BLOCK, step = GROUP * w->k / 2;
    int64_t ahead = (AHEAD + step - 1) / step * step; /* later features, same place */
    const uint16_t *own = x + row * BLOCK;
    const uint8_t *packed[GROUP];
    const float *scales[GROUP];
    __m512 total[PASS][GROUP];
#pragma GCC unroll 4
    for (int f = start; f < end; f++) {
        packed[f] = group->packed[f];
        scales[f] = group->scales[f];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            total[r][f] = _mm512_setzero_ps();
    }
    for (int64_t b = 0; b < blocks; b++, own += m * BLOCK) {
        Block weights[GROUP];
#pragma GCC unroll 4
        for (int f = start; f < end; f++) {
            _mm_prefetch((const char *)packed[f] + b * BLOCK_BYTES + ahead, _MM_HINT_T0);
            weights[f] = dequantise(packed[f] + b * BLOCK_BYTES, scales[f][b], w->code);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            __m512bh even = load(own + r * BLOCK), odd = load(own + r * BLOCK + LANES);
#pragma GCC unroll 4
            for (int f = start; f < end; f++) {
                total[r][f] = _mm512_dpbf16_ps(total[r][f], even, weights[f].even);
                total[r][f] = _mm512_dpbf16_ps(total[r][f], odd, weights[f].odd);
            }
        }
    }
    __m512 none = _mm512_setzero_ps();
    int64_t left = w->n - (first + start), count = left < end - start ? left : end - start;
#pragma GCC unroll 8
    for (int r = 0; r < rows && count > 0; r++) {
        __m512 *sums = total[r] + start;
        int pair = end - start == 2;
        put(output, w->n, row + r, first + start, count,
            sum_lanes(sums[0], sums[1], pair ? none : sums[2], pair ? none : sums[3]));
    }
}

#define WHOLE(ROWS) case ROWS: direct(ROWS, 0, 4, w, group, x, m, row, first, output); break
#define HALVES(ROWS)                                                                                                  \
    case ROWS:                                                                                                        \
        direct(ROWS, 0, 2, w, group, x, m, row, first, output);                                                          \
        direct(ROWS, 2, 4, w, group, x, m, row, first, output);                                                          \
        break

/* Sums of up to 4 rows and 4 features fit the registers beside the weights, or of up to 8 rows and 2 features. */
AVX512 static void pass(int rows, const Weight *w, const Group *group, const uint16_t *x, int64_t m, int64_t row,
                        int64_t first, const Output *output)
{
    switch (rows) {
        WHOLE(1);
        WHOLE(2);
        WHOLE(3);
        WHOLE(4);
        HALVES(5);
        HALVES(6);
        HALVES(7);
        HALVES(8);
    }
}

AVX512 static void few(int64_t m, const Weight *w, const uint16_t *x, int64_t first, float *scales,
                       const Output *output)
{
    Group group;
    int64_t blocks = w->k / BLOCK, last = w->n - first - 1;
    decode(&w->scales, first * blocks, (last < GROUP ? last + 1 : GROUP) * blocks, scales);
    for (int f = 0; f < GROUP; f++) {
        int64_t own = f < last ? f : last;
        group.packed[f] = w->packed + (first + own) * blocks * BLOCK_BYTES;
        group.scales[f] = scales + own * blocks;
    }
    for (int64_t row = 0; row < m; row += PASS)
        pass(m - row < PASS ? (int)(m - row) : PASS, w, &group, x, m, row, first, output);
}

/* -- more rows: a panel of the weight in the cache ------------------------------------------------------------------ */

typedef struct {
    uint16_t values[PANEL * CHUNK];
    float *scales; /* [PANEL, k / BLOCK] */
    float *sums;   /* [m, PANEL, SUM_FLOATS], between one chunk and the next */
} Panel;

/* A chunk of the panel: its features, the first of them, its inputs, and the last chunk's privilege to write. */
typedef struct {
    int features;
    int64_t first, from, length;
    int last;
} Chunk;

/* `rows` rows of x from `row`, times GROUP features of the panel from `f`: added to the sums, or the sums' end. */
AVX512 INLINE void multiply(const int rows, const uint16_t *x, int64_t m, int64_t n, int64_t row, int f,
                            const Chunk *chunk, Panel *panel, const Output *output)
{
    float *sums = panel->sums + (row * PANEL + f) * SUM_FLOATS;
    const uint16_t *own = x + chunk->from * m + row * BLOCK, *values = panel->values + f * CHUNK;
    __m512 total[ROWS][GROUP];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int g = 0; g < GROUP; g++)
            total[r][g] = chunk->from ? _mm512_load_ps(sums + (r * PANEL + g) * SUM_FLOATS) : _mm512_setzero_ps();
    for (int64_t b = 0; b < chunk->length; b += BLOCK, own += m * BLOCK, values += BLOCK)
        for (int half = 0; half < BLOCK; half += LANES) {
            __m512bh weights[GROUP];
#pragma GCC unroll 4
            for (int g = 0; g < GROUP; g++)
                weights[g] = load(values + g * CHUNK + half);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                __m512bh inputs = load(own + r * BLOCK + half);
#pragma GCC unroll 4
                for (int g = 0; g < GROUP; g++)
                    total[r][g] = _mm512_dpbf16_ps(total[r][g], inputs, weights[g]);
            }
        }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        if (chunk->last) {
            put(output, n, row + r, chunk->first + f, chunk->features - f,
                sum_lanes(total[r][0], total[r][1], total[r][2], total[r][3]));
            continue;
        }
#pragma GCC unroll 4
        for (int g = 0; g < GROUP; g++)
            _mm512_store_ps(sums + (r * PANEL + g) * SUM_FLOATS, total[r][g]);
    }
}

#define MULTIPLY(ROWS) case ROWS: multiply(ROWS, x, m, n, row, f, chunk, panel, output); break

AVX512 static void multiply_rows(int rows, const uint16_t *x, int64_t m, int64_t n, int64_t row, int f,
                                 const Chunk *chunk, Panel *panel, const Output *output)
{
    switch (rows) {
        MULTIPLY(1);
        MULTIPLY(2);
        MULTIPLY(3);
        MULTIPLY(4);
        MULTIPLY(5);
        MULTIPLY(6);
    }
}

/* Dequantise a chunk, and ask for what comes after it: the next chunk, or the next panel's first. */
AVX512 static void fill(const Weight *w, const Chunk *chunk, Panel *panel)
{
    int64_t blocks = w->k / BLOCK, start = chunk->from / BLOCK;
    int64_t ahead = chunk->last ? (PANEL * w->k - chunk->from) / 2 : CHUNK / 2;
    for (int f = 0; f < chunk->features; f++) {
        const uint8_t *packed = w->packed + ((chunk->first + f) * blocks + start) * BLOCK_BYTES;
        const float *scales = panel->scales + f * blocks + start;
        uint16_t *values = panel->values + f * CHUNK;
        for (int64_t b = 0; b < chunk->length / BLOCK; b++, packed += BLOCK_BYTES, values += BLOCK) {
            _mm_prefetch((const char *)packed + ahead, _MM_HINT_T0);
            Block block = dequantise(packed, scales[b], w->code);
            _mm512_store_si512(values, (__m512i)block.even);
            _mm512_store_si512(values + LANES, (__m512i)block.odd);
        }
    }
}

AVX512 static void many(int64_t m, const Weight *w, const uint16_t *x, int64_t first, Panel *panel,
                        const Output *output)
{
    Chunk chunk = {.features = w->n - first < PANEL ? (int)(w->n - first) : PANEL, .first = first};
    decode(&w->scales, first * (w->k / BLOCK), chunk.features * (w->k / BLOCK), panel->scales);
    for (chunk.from = 0; chunk.from < w->k; chunk.from += CHUNK) {
        chunk.length = w->k - chunk.from < CHUNK ? w->k - chunk.from : CHUNK;
        chunk.last = chunk.from + CHUNK >= w->k;
        fill(w, &chunk, panel);
        for (int64_t row = 0; row < m; row += ROWS)
            for (int f = 0; f < chunk.features; f += GROUP)
                multiply_rows(m - row < ROWS ? (int)(m - row) : ROWS, x, m, w->n, row, f, &chunk, panel, output);
    }
}

/* -- all of it ------------------------------------------------------------------------------------------------------- */

/* x [m, k] -> [k / BLOCK, m, BLOCK], evens before odds in every block: what is used together lies together. */
AVX512 static void rearrange(const uint16_t *x, int64_t m, int64_t k, uint16_t *out)
{
    uint16_t order[LANES];
    for (int i = 0; i < LANES; i++)
        order[i] = 2 * i;
    __m512i even = _mm512_loadu_si512(order), odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
    for (int64_t row = 0; row < m; row++)
        for (int64_t from = 0; from < k; from += BLOCK) {
            const uint16_t *block = x + row * k + from;
            uint16_t *ordered = out + from * m + row * BLOCK;
            __m512i low = _mm512_loadu_si512(block), high = _mm512_loadu_si512(block + LANES);
            _mm512_store_si512(ordered, _mm512_permutex2var_epi16(low, even, high));
            _mm512_store_si512(ordered + LANES, _mm512_permutex2var_epi16(low, odd, high));
        }
}

INLINE size_t lines(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* out [m, n] = x W^T + start [m, n] + bias [n]; start and bias may be NULL. k is a multiple of 64. Returns 0, or 1 if
 * memory has run out. */
AVX512 int pefttool_linear_4bit(const uint16_t *x, int64_t m, int64_t n, int64_t k, const uint8_t *packed,
                                const void *absmax, const float *code, const float *nested_absmax,
                                const float *nested_code, const float *offset, const float *start, const float *bias,
                                uint16_t *out, int threads)
{
    Weight weight = {n, k, packed, scales_of(absmax, nested_absmax, nested_code, offset), _mm512_loadu_ps(code)};
    Output output = {start, bias, out};
    int64_t step = m > DIRECT_ROWS ? PANEL : GROUP;
    size_t scales = lines(step * (k / BLOCK) * sizeof(float));
    size_t sums = m > DIRECT_ROWS ? m * PANEL * SUM_FLOATS * sizeof(float) : 0;
    size_t panel = m > DIRECT_ROWS ? lines(sizeof(Panel)) : 0;
    uint16_t *ordered = aligned_alloc(64, lines(m * k * sizeof(uint16_t)));
    int failed = !ordered;
    if (failed)
        return 1;
    rearrange(x, m, k, ordered);
#pragma omp parallel num_threads(threads) reduction(|| : failed) if (threads > 1)
    {
        char *scratch = aligned_alloc(64, panel + scales + sums);
        Panel *own = (Panel *)scratch;
        failed = !scratch;
        if (scratch && m > DIRECT_ROWS) {
            own->scales = (float *)(scratch + panel);
            own->sums = (float *)(scratch + panel + scales);
        }
#pragma omp for schedule(static)
        for (int64_t first = 0; first < n; first += step) {
            if (failed)
                continue;
            if (m > DIRECT_ROWS)
                many(m, &weight, ordered, first, own, &output);
            else
                few(m, &weight, ordered, first, (float *)scratch, &output);
        }
        free(scratch);
    }
    free(ordered);
    return failed;
}
