/* The scales of 4-bit blocks, as both C files read them. The layout is drawn in layout.py. */
#ifndef PEFTTOOL_SCALES_H
#define PEFTTOOL_SCALES_H

#include <stdint.h>

#define BLOCK 64       /* weights that share a scale */
#define NESTED_SHIFT 8 /* 256 scales share a scale */

typedef struct {
    const void *absmax;         /* float, or uint8_t when nested */
    const float *nested_absmax; /* NULL: not nested */
    const float *nested_code;
    float offset;
} Scales;

static inline Scales scales_of(const void *absmax, const float *nested_absmax, const float *nested_code,
                               const float *offset)
{
    Scales scales = {absmax, nested_absmax, nested_code, offset ? *offset : 0.0f};
    return scales;
}

/* A product and a sum in float32, never contracted (-ffp-contract=off): as bitsandbytes decodes it, bit by bit. */
static inline float scale_at(const Scales *scales, int64_t block)
{
    if (!scales->nested_absmax)
        return ((const float *)scales->absmax)[block];
    float product =
        scales->nested_code[((const uint8_t *)scales->absmax)[block]] * scales->nested_absmax[block >> NESTED_SHIFT];
    return product + scales->offset;
}

#endif
