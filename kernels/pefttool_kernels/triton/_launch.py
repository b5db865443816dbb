"""What the launchers share: which operands the kernels read, views of them, the tile, and the right device."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from pefttool_kernels.layout import BLOCK, EightBitWeight, FourBitWeight
from pefttool_kernels.triton.configs import SMALL, Config, choose_config

DTYPES = (torch.bfloat16, torch.float16)
WORD_BYTES = 4
COPY_VALUES = 16  # the compiler makes whole copies of rows that are a multiple of this
#: The epilogue's sum over the rank goes in slices of the least width that tensor cores take.
RANK_BLOCK = 16
#: A product and a sum stay two roundings, so that every kernel reads the same weights, to the bit, as bitsandbytes.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}


class UnsupportedOperand(ValueError):
    """An operand that the kernels do not read; the message names what."""


def supports_4bit(weight: FourBitWeight, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot read this weight, or compute in `dtype`; None if they can."""
    if weight.in_features % BLOCK:
        return f"in_features {weight.in_features} is not a multiple of {BLOCK}: blocks of weights straddle rows"
    return _dtype_reason(dtype) or _word_reason("packed weights", weight.packed)


def supports_8bit(weight: EightBitWeight, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot read this weight, or compute in `dtype`; None if they can."""
    if weight.in_features % BLOCK:
        return f"in_features {weight.in_features} is not a multiple of {BLOCK}, the least step of the kernels"
    return _dtype_reason(dtype) or _word_reason("values", weight.values)


def _dtype_reason(dtype: torch.dtype) -> str | None:
    if dtype in DTYPES:
        return None
    return f"the kernels compute in bfloat16 and float16, not in {str(dtype).removeprefix('torch.')}"


def _word_reason(name: str, tensor: Tensor) -> str | None:
    if not tensor.is_contiguous():
        return f"the {name} are not contiguous"
    if tensor.data_ptr() % WORD_BYTES:
        return f"the {name} do not start at a multiple of {WORD_BYTES} bytes: they are read as words"
    return None


def require(reason: str | None) -> None:
    """UnsupportedOperand if there is a reason."""
    if reason is not None:
        raise UnsupportedOperand(reason)


def common_rank(left: Tensor | None, right: Tensor | None) -> int:
    """r of the low-rank pair left [M, r] and right; 0 if there is none. UnsupportedOperand for half a pair."""
    if (left is None) != (right is None):
        raise UnsupportedOperand("a low-rank update needs both of its factors, or neither")
    return 0 if left is None else left.shape[1]


def check_operands(x: Tensor, weight: Tensor, shapes: dict[str, tuple[Tensor | None, tuple[int, ...]]]) -> None:
    """UnsupportedOperand unless each operand has its shape and x's dtype, is contiguous, and is where the weight is."""
    for name, (tensor, shape) in shapes.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise UnsupportedOperand(f"{name} of shape {tuple(tensor.shape)}: {shape} was expected")
        if tensor.dtype != x.dtype:
            raise UnsupportedOperand(f"{name} is {tensor.dtype}, the other operands are {x.dtype}")
        if tensor.device != weight.device:
            raise UnsupportedOperand(f"{name} is on {tensor.device}, the weight on {weight.device}")
        if not tensor.is_contiguous():
            raise UnsupportedOperand(f"{name} is not contiguous")


def four_bit_arguments(weight: FourBitWeight) -> dict[str, Tensor | None]:
    """The weight as the kernels read it, as int32 words. Nested scales whose count is no multiple of 4 are copied."""
    absmax = weight.absmax
    if weight.nested:
        missing = -absmax.numel() % WORD_BYTES  # a pad by nothing would be a copy, too
        absmax = (torch.nn.functional.pad(absmax, (0, missing)) if missing else absmax).view(torch.int32)
    return {
        "words": weight.packed.view(-1).view(torch.int32),
        "absmax": absmax,
        "code": weight.code,
        "nested_absmax": weight.nested_absmax,
        "nested_code": weight.nested_code,
        "offset": weight.offset,
    }


def tile_constants(config: Config) -> dict[str, int]:
    """The constants that every product's kernel takes."""
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": config.group_m,
        "RANK_BLOCK": RANK_BLOCK,
    }


def launch_options(config: Config) -> dict[str, Any]:
    return {"num_warps": config.num_warps, "num_stages": config.num_stages, **OPTIONS}


def config_for(x: Tensor, columns: int, choices: tuple[Config, ...]) -> Config:
    """The tile for x [M, S] and an output of [M, columns], on x's device."""
    if x.shape[1] % COPY_VALUES:
        return SMALL  # no copy of 16 bytes fits x's rows: its values pass through registers, a larger tile would spill
    capability, processors = _card(x.device.index)
    return choose_config(x.shape[0], columns, capability, processors, choices)


@functools.cache
def _card(index: int | None) -> tuple[tuple[int, int], int]:
    properties = torch.cuda.get_device_properties(index)
    return (properties.major, properties.minor), properties.multi_processor_count
