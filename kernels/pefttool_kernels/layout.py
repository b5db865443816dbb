"""The packed formats, as bitsandbytes stores them, and views of them. Nothing here copies a weight.

4 bits: W is [N, K] (out_features, in_features), flat in row-major order, e = n * K + k.

    packed   byte e // 2      high nibble: code of an even e, low nibble: code of the odd e that follows
             +---------+---------+
             | 7 6 5 4 | 3 2 1 0 |     as a little-endian int32, nibble e % 8 starts at bit 4 * ((e % 8) ^ 1)
             |  e even |  e odd  |
             +---------+---------+
    absmax   [e // 64]        one scale for 64 weights: float32, or a code of 8 bits with nested scales
    W[n, k]  = code[nibble] * absmax                                                      (in float32, then rounded)
    nested   absmax = nested_code[absmax_8bit] * nested_absmax[e // 64 // 256] + offset   (in float32)

8 bits, row by row, as `Linear8bitLt` stores it: values int8 [N, K], scales float32 [N], the row's largest magnitude.

    W[n, k]  = values[n, k] * scales[n] / 127
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 64  # weights that share a scale
NESTED_BLOCK = 256  # scales that share a scale


class UnsupportedLayout(ValueError):
    """A weight that is stored in a way which the kernels do not read; the message names what and the way out."""


class RepackedWeight(ValueError):
    """A weight that bitsandbytes has rewritten in place: its values changed, and nobody else's operators read it."""


class FourBitWeight(NamedTuple):
    """A view of one 4-bit weight. The tensors are bitsandbytes' own, on one device."""

    packed: Tensor  # uint8, ceil(N * K / 2) values, contiguous, of any shape
    absmax: Tensor  # [ceil(N * K / 64)], float32, or uint8 when nested
    code: Tensor  # [16], float32
    nested_absmax: Tensor | None  # [ceil(len(absmax) / 256)], float32
    nested_code: Tensor | None  # [256], float32
    offset: Tensor | None  # one value, float32
    out_features: int  # N
    in_features: int  # K
    quant_type: str  # the code's name: "nf4" or "fp4"

    @property
    def nested(self) -> bool:
        return self.nested_absmax is not None

    @property
    def numel(self) -> int:
        return self.out_features * self.in_features

    def arguments(self) -> tuple[Any, ...]:
        """The fields in their order, in which the operators take them; `FourBitWeight(*arguments)` is the inverse."""
        return tuple(self)

    @classmethod
    def of(cls, weight: Tensor, state: Any) -> FourBitWeight:
        """The view of a `Params4bit` (or its data) and its `quant_state`.

        UnsupportedLayout for another block size or orientation, which bitsandbytes can still multiply by.
        RepackedWeight for one that it has repacked for inference on the CPU: falling back would cut gradients off.
        """
        if getattr(state, "packing_format_for_cpu", False):
            raise RepackedWeight(
                "this weight was repacked by bitsandbytes for inference on the CPU, which rounds its scales to"
                " bfloat16: load the model again with support_avx512bf16_for_cpu = False on its Linear4bit layers"
            )
        if state.blocksize != BLOCK:
            raise UnsupportedLayout(f"block size {state.blocksize}: the kernels read {BLOCK} (bitsandbytes' default)")
        if len(state.shape) != 2:
            raise UnsupportedLayout(f"a weight of shape {tuple(state.shape)}: the kernels read [out, in] matrices")
        if weight.dtype != torch.uint8:
            weight = weight.view(torch.uint8)
        if not weight.is_contiguous():
            raise UnsupportedLayout("packed weights that are not contiguous: call .contiguous() on them first")
        n, k = state.shape
        shape = (n, k, state.quant_type)
        if not state.nested:
            return cls(weight, state.absmax, state.code, None, None, None, *shape)
        if state.state2.blocksize != NESTED_BLOCK:
            raise UnsupportedLayout(
                f"nested scales in blocks of {state.state2.blocksize}: the kernels read {NESTED_BLOCK}"
            )
        return cls(weight, state.absmax, state.code, state.state2.absmax, state.state2.code, state.offset, *shape)


class EightBitWeight(NamedTuple):
    """A view of one weight of 8 bits, with a scale a row."""

    values: Tensor  # int8 [N, K], contiguous
    scales: Tensor  # float32 [N]

    @property
    def out_features(self) -> int:
        return self.values.shape[0]

    @property
    def in_features(self) -> int:
        return self.values.shape[1]

    def arguments(self) -> tuple[Any, ...]:
        """The fields in their order, in which the operators take them."""
        return tuple(self)
