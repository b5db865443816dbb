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


class DamagedWeight(ValueError):
    """A weight whose parts do not fit together: whoever reads it by its shape reads memory that is not its own."""


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
        DamagedWeight for parts that are too small for the shape, or of other dtypes (a file may say anything).
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
        if not weight.is_contiguous():
            raise UnsupportedLayout("packed weights that are not contiguous: call .contiguous() on them first")
        if weight.dtype != torch.uint8:
            try:
                weight = weight.view(torch.uint8)
            except RuntimeError as error:  # one value, or none, has any stride
                raise UnsupportedLayout(f"packed weights that cannot be seen as bytes: {error}") from error
        n, k = state.shape
        shape = (n, k, state.quant_type)
        if not state.nested:
            return cls(weight, _float32(state.absmax), state.code, None, None, None, *shape)._whole()
        if state.state2.blocksize != NESTED_BLOCK:
            raise UnsupportedLayout(
                f"nested scales in blocks of {state.state2.blocksize}: the kernels read {NESTED_BLOCK}"
            )
        nested = state.state2.absmax, state.state2.code, _float32(state.offset)
        return cls(weight, state.absmax, state.code, *nested, *shape)._whole()

    def _whole(self) -> FourBitWeight:
        """Itself, if each part is as large as the shape needs. Raises DamagedWeight."""
        if self.out_features < 0 or self.in_features < 0:
            raise DamagedWeight(f"a 4-bit weight of shape [{self.out_features}, {self.in_features}]: load it again")
        scales = -(-self.numel // BLOCK)
        needed: list[tuple[str, Tensor | None, torch.dtype, int]] = [
            ("packed", self.packed, torch.uint8, -(-self.numel // 2)),
            ("absmax", self.absmax, torch.uint8 if self.nested else torch.float32, scales),
            ("code", self.code, torch.float32, 16),
        ]
        if self.nested:
            needed += [
                ("nested_absmax", self.nested_absmax, torch.float32, -(-scales // NESTED_BLOCK)),
                ("nested_code", self.nested_code, torch.float32, 256),
                ("offset", self.offset, torch.float32, 1),
            ]
        for name, part, dtype, count in needed:
            if part is None or part.dtype != dtype or part.numel() < count:
                found = "nothing" if part is None else f"{part.numel()} values of {part.dtype}"
                raise DamagedWeight(
                    f"{name} of a 4-bit weight of shape [{self.out_features}, {self.in_features}]: found {found},"
                    f" expected {count} of {dtype}: load the model again"
                )
        return self


def _float32(part: Tensor | None) -> Tensor | None:
    """Scales that a cast of the whole layer has made narrower are widened, as bitsandbytes does."""
    return part.float() if part is not None and part.is_floating_point() else part


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
