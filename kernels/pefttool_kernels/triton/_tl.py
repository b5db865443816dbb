"""What the kernels share: casts, products, the code's lookup, scales, unpacking, and the order of the tiles.

Triton's interpreter differs from a GPU in three ways, and each has its branch here, under `INTERPRETED`: it keeps
bfloat16 as bare uint16, so that a product multiplies bit patterns and a cast truncates; and it runs no inline assembly.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Decided once, at import, exactly as `triton.jit` decides for the kernels themselves.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
BLOCK = tl.constexpr(64)  # weights that share a scale, see layout.py
NESTED_SHIFT = tl.constexpr(8)  # 256 scales share a scale; a shift, for a division would allow for a negative number
CODES_PER_WORD = tl.constexpr(8)  # of 4 bits, in an int32
BYTES_PER_WORD = tl.constexpr(4)


@triton.jit
def cast(value, dtype: tl.constexpr):
    """`value` (float32) in `dtype`, rounded to the nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(dtype)


@triton.jit
def dot(left, right, total):
    """left @ right + total; `total` is float32."""
    if INTERPRETED:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total)
    else:
        return tl.dot(left, right, total)


@triton.jit
def tile_position(m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """(row, column) of this program's tile: GROUP_M rows of tiles, column by column, so that the L2 cache is reused."""
    program = tl.program_id(0)
    tile_rows = tl.cdiv(m, BLOCK_M)
    tile_columns = tl.cdiv(n, BLOCK_N)
    group = program // (GROUP_M * tile_columns)
    first = group * GROUP_M
    height = tl.minimum(tile_rows - first, GROUP_M)
    within = program % (GROUP_M * tile_columns)
    return first + within % height, within // height


@triton.jit
def lane_table(code):
    """The 16 values of `code` (pointer, float32), spread over a warp: lane i holds value i % 16, as int32 bits.

    A scalar to the compiler, which takes it for the same in every lane: it never moves, unlike a tensor, which the
    compiler may carry from lane to lane to suit its layout.
    """
    if INTERPRETED:
        return 0
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .u32 lane;
            .reg .u64 address;
            mov.u32 lane, %laneid;
            and.b32 lane, lane, 15;
            mul.wide.u32 address, lane, 4;
            add.u64 address, address, $1;
            ld.global.b32 $0, [address];
            }""",
            "=r,l",
            [code],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def look_up(table, code, index):
    """code[index % 16], float32. A shuffle reads five bits of the index, and the table repeats: no mask is needed."""
    if INTERPRETED:
        return tl.load(code + (index & 15))
    else:
        bits = tl.inline_asm_elementwise(
            "shfl.sync.idx.b32 $0, $1, $2, 31, 0xffffffff;",
            "=r,r,r",
            [table, index],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def nested_offset(offset):
    """What every nested scale is shifted by; 0 where scales are flat (`offset` is None)."""
    if offset is None:
        return 0.0
    else:
        return tl.load(offset)


@triton.jit
def block_scales(absmax, nested_absmax, nested_code, shift, block, mask):
    """The float32 scales of the blocks numbered `block`; 0 or `shift` where `mask` is false (None: all are read).

    absmax: float32, or, nested, codes of 8 bits seen as int32 words: an 8-bit load here would make Triton choose a
    layout of the operand without ldmatrix, and double the loop.
    """
    other = None if mask is None else 0
    if nested_absmax is None:
        return tl.load(absmax + block, mask=mask, other=other)
    else:
        word = tl.load(absmax + (block >> 2), mask=mask, other=other)
        scale = tl.load(nested_code + ((word >> ((block & 3) * 8)) & 255))
        return scale * tl.load(nested_absmax + (block >> NESTED_SHIFT), mask=mask, other=other) + shift


@triton.jit
def unpack_4bit(words, scales, table, code, dtype: tl.constexpr):
    """words int32 [R, C], 8 codes each; scales float32, broadcastable to words -> weights [R, 8 C] in `dtype`.

    Weight e of a word is at bit 4 * (e ^ 1). Joins of the last axis stay in registers: no data moves.
    """
    w0 = cast(look_up(table, code, words >> 4) * scales, dtype)
    w1 = cast(look_up(table, code, words) * scales, dtype)
    w2 = cast(look_up(table, code, words >> 12) * scales, dtype)
    w3 = cast(look_up(table, code, words >> 8) * scales, dtype)
    w4 = cast(look_up(table, code, words >> 20) * scales, dtype)
    w5 = cast(look_up(table, code, words >> 16) * scales, dtype)
    w6 = cast(look_up(table, code, words >> 28) * scales, dtype)
    w7 = cast(look_up(table, code, words >> 24) * scales, dtype)
    even = tl.join(tl.join(w0, w4), tl.join(w2, w6))
    odd = tl.join(tl.join(w1, w5), tl.join(w3, w7))
    return tl.reshape(tl.join(even, odd), (words.shape[0], words.shape[1] * CODES_PER_WORD))


@triton.jit
def unpack_8bit(words, dtype: tl.constexpr):
    """words int32 [R, C], 4 signed bytes each -> values [R, 4 C] in `dtype`, which holds them exactly."""
    w0 = cast(((words << 24) >> 24).to(tl.float32), dtype)
    w1 = cast(((words << 16) >> 24).to(tl.float32), dtype)
    w2 = cast(((words << 8) >> 24).to(tl.float32), dtype)
    w3 = cast((words >> 24).to(tl.float32), dtype)
    values = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.reshape(values, (words.shape[0], words.shape[1] * BYTES_PER_WORD))


@triton.jit
def add_low_rank(total, left, right, rows, columns, rank, column_stride, rank_stride, RANK_BLOCK: tl.constexpr):
    """total + left @ right, a slice of RANK_BLOCK at a time; `rows` and `columns` are in bounds (clamped).

    left: pointer to [M, rank], contiguous; right: to [rank, N], element (i, j) at i * rank_stride + j * column_stride.
    """
    for start in tl.range(0, rank, RANK_BLOCK, num_stages=1):
        inner = start + tl.arange(0, RANK_BLOCK)
        inside = inner < rank
        a = tl.load(left + rows[:, None].to(tl.int64) * rank + inner[None, :], mask=inside[None, :], other=0.0)
        position = inner[:, None] * rank_stride + columns[None, :].to(tl.int64) * column_stride
        b = tl.load(right + position, mask=inside[:, None], other=0.0)
        total = dot(a, b, total)
    return total


@triton.jit
def spread_scales(scales, COLUMNS: tl.constexpr):
    """scales [R, B] -> [R, COLUMNS]: each repeated for the words of its block."""
    rows: tl.constexpr = scales.shape[0]
    blocks: tl.constexpr = scales.shape[1]
    if blocks == COLUMNS:
        return scales
    else:
        repeated = tl.broadcast_to(scales[:, :, None], (rows, blocks, COLUMNS // blocks))
        return tl.reshape(repeated, (rows, COLUMNS))
