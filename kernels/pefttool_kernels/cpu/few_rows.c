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
#define LANES 32      /* bfloat16 values in a register */
#define ROWS 6        /* rows of x times GROUP features: 24 of the 32 registers hold sums */
#define GROUP 4
#define PANEL 16
#define CHUNK 512
#define PASS 8        /* rows of x that are computed together where weights stay in registers */
#define DIRECT_ROWS 8
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

/* float32 -> bfloat16, to nearest even; NaN stays NaN. */
INLINE uint16_t to_bfloat16(float value)
{
    union {
        float value;
        uint32_t bits;
    } word = {value};
    if (value != value)
        return (uint16_t)(word.bits >> 16) | 0x40;
    return (uint16_t)((word.bits + 0x7fff + ((word.bits >> 16) & 1)) >> 16);
}

INLINE void put(const Output *output, int64_t n, int64_t row, int64_t feature, float sum)
{
    int64_t at = row * n + feature;
    float bias = output->bias ? output->bias[feature] : 0.0f, start = output->start ? output->start[at] : 0.0f;
    output->out[at] = to_bfloat16(sum + (bias + start));
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
    int64_t index[GROUP]; /* features; past the end of W the last one again, computed and not stored */
    float *scales;        /* [GROUP, k / BLOCK] */
} Group;

/* `rows` rows of x from `row`, with the features from `start` to `end` of a group. All but x and row are constants. */
AVX512 INLINE void direct(const int rows, const int start, const int end, const Weight *w, const Group *group,
                          const uint16_t *x, int64_t row, int64_t first, const Output *output)
{
    int64_t blocks = w->k / BLOCK;
    __m512 total[PASS][GROUP];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int f = start; f < end; f++)
            total[r][f] = _mm512_setzero_ps();
    for (int64_t b = 0; b < blocks; b++) {
        Block weights[GROUP];
#pragma GCC unroll 4
        for (int f = start; f < end; f++) {
            const uint8_t *packed = w->packed + (group->index[f] * w->k + b * BLOCK) / 2;
            _mm_prefetch((const char *)packed + GROUP * w->k / 2, _MM_HINT_T0); /* the next features, same place */
            weights[f] = dequantise(packed, group->scales[f * blocks + b], w->code);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const uint16_t *own = x + (row + r) * w->k + b * BLOCK;
            __m512bh even = load(own), odd = load(own + LANES);
#pragma GCC unroll 4
            for (int f = start; f < end; f++) {
                total[r][f] = _mm512_dpbf16_ps(total[r][f], even, weights[f].even);
                total[r][f] = _mm512_dpbf16_ps(total[r][f], odd, weights[f].odd);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int f = start; f < end; f++)
            if (first + f < w->n)
                put(output, w->n, row + r, first + f, _mm512_reduce_add_ps(total[r][f]));
}

#define WHOLE(ROWS) case ROWS: direct(ROWS, 0, 4, w, group, x, row, first, output); break
#define HALVES(ROWS)                                                                                                  \
    case ROWS:                                                                                                        \
        direct(ROWS, 0, 2, w, group, x, row, first, output);                                                          \
        direct(ROWS, 2, 4, w, group, x, row, first, output);                                                          \
        break

/* Sums of up to 4 rows and 4 features fit the registers beside the weights, or of up to 8 rows and 2 features. */
AVX512 static void pass(int rows, const Weight *w, const Group *group, const uint16_t *x, int64_t row, int64_t first,
                        const Output *output)
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
    Group group = {.scales = scales};
    int64_t blocks = w->k / BLOCK;
    for (int f = 0; f < GROUP; f++) {
        group.index[f] = first + f < w->n ? first + f : w->n - 1;
        decode(&w->scales, group.index[f] * blocks, blocks, scales + f * blocks);
    }
    for (int64_t row = 0; row < m; row += PASS)
        pass(m - row < PASS ? (int)(m - row) : PASS, w, &group, x, row, first, output);
}

/* -- more rows: a panel of the weight in the cache ------------------------------------------------------------------ */

typedef struct {
    uint16_t values[PANEL * CHUNK];
    float scales[CHUNK / BLOCK];
    float sums[]; /* [m, PANEL, SUM_FLOATS] */
} Panel;

/* sums [rows, GROUP] += x [rows, length] times GROUP features of the panel. */
AVX512 INLINE void multiply(const int rows, const uint16_t *x, int64_t stride, const uint16_t *values, int64_t length,
                            float *sums)
{
    __m512 total[ROWS][GROUP];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int f = 0; f < GROUP; f++)
            total[r][f] = _mm512_loadu_ps(sums + (r * PANEL + f) * SUM_FLOATS);
    for (int64_t at = 0; at < length; at += LANES) {
        __m512bh weights[GROUP];
#pragma GCC unroll 4
        for (int f = 0; f < GROUP; f++)
            weights[f] = load(values + f * CHUNK + at);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m512bh own = load(x + r * stride + at);
#pragma GCC unroll 4
            for (int f = 0; f < GROUP; f++)
                total[r][f] = _mm512_dpbf16_ps(total[r][f], own, weights[f]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int f = 0; f < GROUP; f++)
            _mm512_storeu_ps(sums + (r * PANEL + f) * SUM_FLOATS, total[r][f]);
}

AVX512 static void multiply_rows(int rows, const uint16_t *x, int64_t stride, const uint16_t *values, int64_t length,
                                 float *sums)
{
    switch (rows) {
    case 1: multiply(1, x, stride, values, length, sums); break;
    case 2: multiply(2, x, stride, values, length, sums); break;
    case 3: multiply(3, x, stride, values, length, sums); break;
    case 4: multiply(4, x, stride, values, length, sums); break;
    case 5: multiply(5, x, stride, values, length, sums); break;
    default: multiply(ROWS, x, stride, values, length, sums); break;
    }
}

AVX512 static void fill(const Weight *w, int64_t first, int features, int64_t from, int64_t length, Panel *panel)
{
    for (int f = 0; f < features; f++) {
        int64_t element = (first + f) * w->k + from;
        decode(&w->scales, element / BLOCK, length / BLOCK, panel->scales);
        for (int64_t b = 0; b < length / BLOCK; b++) {
            const uint8_t *packed = w->packed + (element + b * BLOCK) / 2;
            _mm_prefetch((const char *)packed + CHUNK / 2, _MM_HINT_T0); /* the next chunk, same place */
            Block block = dequantise(packed, panel->scales[b], w->code);
            uint16_t *values = panel->values + f * CHUNK + b * BLOCK;
            _mm512_storeu_si512(values, (__m512i)block.even);
            _mm512_storeu_si512(values + LANES, (__m512i)block.odd);
        }
    }
}

AVX512 static void many(int64_t m, const Weight *w, const uint16_t *x, int64_t first, Panel *panel,
                        const Output *output)
{
    int features = w->n - first < PANEL ? (int)(w->n - first) : PANEL;
    memset(panel->sums, 0, m * PANEL * SUM_FLOATS * sizeof(float));
    for (int64_t from = 0; from < w->k; from += CHUNK) {
        int64_t length = w->k - from < CHUNK ? w->k - from : CHUNK;
        fill(w, first, features, from, length, panel);
        for (int64_t row = 0; row < m; row += ROWS)
            for (int f = 0; f < features; f += GROUP)
                multiply_rows(m - row < ROWS ? (int)(m - row) : ROWS, x + row * w->k + from, w->k,
                              panel->values + f * CHUNK, length, panel->sums + (row * PANEL + f) * SUM_FLOATS);
    }
    for (int64_t row = 0; row < m; row++)
        for (int f = 0; f < features; f++) {
            __m512 sum = _mm512_loadu_ps(panel->sums + (row * PANEL + f) * SUM_FLOATS);
            put(output, w->n, row, first + f, _mm512_reduce_add_ps(sum));
        }
}

/* -- all of it ------------------------------------------------------------------------------------------------------- */

/* Evens before odds in every run of 64 values. */
AVX512 static void rearrange(const uint16_t *x, int64_t count, uint16_t *out)
{
    uint16_t order[LANES];
    for (int i = 0; i < LANES; i++)
        order[i] = 2 * i;
    __m512i even = _mm512_loadu_si512(order), odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
    for (int64_t i = 0; i < count; i += BLOCK) {
        __m512i low = _mm512_loadu_si512(x + i), high = _mm512_loadu_si512(x + i + LANES);
        _mm512_storeu_si512(out + i, _mm512_permutex2var_epi16(low, even, high));
        _mm512_storeu_si512(out + i + LANES, _mm512_permutex2var_epi16(low, odd, high));
    }
}

/* Bytes of scratch that one thread needs for m rows. */
static size_t thread_bytes(int64_t m, int64_t k)
{
    size_t bytes = m > DIRECT_ROWS ? sizeof(Panel) + m * PANEL * SUM_FLOATS * sizeof(float)
                                   : GROUP * (k / BLOCK) * sizeof(float);
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
    uint16_t *ordered = aligned_alloc(64, (m * k * sizeof(uint16_t) + 63) / 64 * 64);
    int failed = !ordered;
    if (failed)
        return 1;
    rearrange(x, m * k, ordered);
#pragma omp parallel num_threads(threads) reduction(|| : failed) if (threads > 1)
    {
        void *scratch = aligned_alloc(64, thread_bytes(m, k));
        failed = !scratch;
#pragma omp for schedule(static)
        for (int64_t first = 0; first < n; first += step) {
            if (failed)
                continue;
            if (m > DIRECT_ROWS)
                many(m, &weight, ordered, first, scratch, &output);
            else
                few(m, &weight, ordered, first, scratch, &output);
        }
        free(scratch);
    }
    free(ordered);
    return failed;
}
