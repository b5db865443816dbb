"""The compiled CPU code behind ctypes: built into the wheel where there was a C compiler, and optional.

Two functions: a rectangle of a 4-bit weight dequantised (AVX512), and products with few rows (AVX512-BF16). Threads
come from the OpenMP pool that torch has loaded.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pefttool_kernels.layout import BLOCK, FourBitWeight

LIBRARY = Path(__file__).with_name("_native.so")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
POINTER, COUNT, NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


@functools.cache
def library() -> Any:
    """The loaded library, or why there is none, as a string."""
    if not LIBRARY.is_file():
        return "the compiled CPU code was not built: reinstall pefttool where there is a C compiler"
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
    except OSError as problem:
        return f"the compiled CPU code cannot be loaded: {problem}"
    loaded.pefttool_dequantize_tile.argtypes = [*[POINTER] * 6, *[COUNT] * 5, POINTER, NUMBER, NUMBER]
    loaded.pefttool_dequantize_tile.restype = None
    loaded.pefttool_linear_4bit.argtypes = [POINTER, *[COUNT] * 3, *[POINTER] * 9, NUMBER]
    loaded.pefttool_linear_4bit.restype = NUMBER
    return loaded


@functools.cache
def missing() -> str | None:
    """Why products with few rows cannot be computed here, or None."""
    found = library()
    if isinstance(found, str):
        return found
    return None if found.pefttool_has_avx512_bf16() else "this CPU has no AVX512-BF16"


@functools.cache
def dequantizes() -> bool:
    """Whether `dequantize` runs here."""
    found = library()
    return not isinstance(found, str) and bool(found.pefttool_has_avx512())


def dequantize(
    weight: FourBitWeight, dtype: torch.dtype, first_row: int, last_row: int, first_column: int, last_column: int
) -> Tensor:
    """That rectangle of W, as bitsandbytes dequantises it, bit by bit. in_features and columns: multiples of 64."""
    if weight.in_features % BLOCK or first_column % BLOCK or last_column % BLOCK:
        raise ValueError(f"columns {first_column} to {last_column} of {weight.in_features}: multiples of {BLOCK} only")
    out = weight.packed.new_empty((last_row - first_row, last_column - first_column), dtype=dtype)
    library().pefttool_dequantize_tile(
        *_stored(weight),
        weight.in_features,
        first_row,
        last_row,
        first_column,
        last_column,
        out.data_ptr(),
        DTYPES[dtype],
        torch.get_num_threads(),
    )
    return out


def linear_4bit(
    x: Tensor, weight: FourBitWeight, bias: Tensor | None, u: Tensor | None, lora_b: Tensor | None
) -> Tensor:
    """x [M, K] W^T + bias [N] + u [M, r] B^T -> [M, N]; x is bfloat16, u and B [N, r] are float32."""
    out = x.new_empty(x.shape[0], weight.out_features)
    start = u @ lora_b.t() if u is not None and lora_b is not None else None
    bias = None if bias is None else bias.detach().float().contiguous()
    failed = library().pefttool_linear_4bit(
        x.data_ptr(),
        x.shape[0],
        weight.out_features,
        weight.in_features,
        *_stored(weight),
        None if start is None else start.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError(f"no memory for the scratch of a product with {x.shape[0]} rows")
    return out


def _stored(weight: FourBitWeight) -> tuple[int | None, ...]:
    tensors = (weight.packed, weight.absmax, weight.code, weight.nested_absmax, weight.nested_code, weight.offset)
    return tuple(None if tensor is None else tensor.data_ptr() for tensor in tensors)
