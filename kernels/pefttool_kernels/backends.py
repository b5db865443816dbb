"""Every backend of every operator behind one signature: 2-D operands in, a 2-D result in the input's dtype out.

    forward   x [M, K], weight, bias [N] | None, u [M, r] | None, lora_b [N, r] | None  ->  x W^T + bias + u B^T  [M, N]
    backward  g [M, N], weight, v [M, r] | None, lora_a [r, K] | None                   ->  g W + v A             [M, K]

u, v, A and B arrive in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pefttool_kernels import tiles
from pefttool_kernels.dispatch import BITSANDBYTES_ROWS, BackendError
from pefttool_kernels.layout import BLOCK, EightBitWeight, FourBitWeight

Weight = FourBitWeight | EightBitWeight


def forward(
    backend: str, x: Tensor, weight: Weight, bias: Tensor | None, u: Tensor | None, lora_b: Tensor | None
) -> Tensor:
    """x W^T + bias + u B^T by the backend of that name."""
    return _FORWARD[backend](x, weight, bias, u, lora_b)


def backward(backend: str, g: Tensor, weight: Weight, v: Tensor | None, lora_a: Tensor | None) -> Tensor:
    """g W + v A by the backend of that name."""
    return _BACKWARD[backend](g, weight, v, lora_a)


def cut(weight: Weight, dtype: torch.dtype) -> tiles.Tiles:
    """The weight's tiles, dequantised by bitsandbytes' operators (4 bits) or PyTorch's (8 bits)."""
    if isinstance(weight, FourBitWeight):
        return tiles.four_bit(weight, dtype)
    return tiles.eight_bit(weight, dtype)


def _whole(weight: Weight, dtype: torch.dtype) -> tiles.Tiles:
    """One tile: the weight, dequantised by one launch into the workspace that the products of a device share."""
    if isinstance(weight, EightBitWeight):
        return replace(cut(weight, dtype), tile_bytes=None)
    from pefttool_kernels.triton.dequantize import dequantize_4bit

    n, k = weight.out_features, weight.in_features

    def whole(first: int, last: int) -> Tensor:
        return dequantize_4bit(weight, dtype, out=workspace(weight.packed.device, n * k, dtype).view(n, k))

    return tiles.Tiles(n, k, whole, whole, n, k, tile_bytes=None)


def _library(weight: Weight, dtype: torch.dtype) -> tiles.Tiles:
    """One tile: the weight, dequantised by bitsandbytes; any in_features."""
    n, k = weight.out_features, weight.in_features

    def whole(first: int, last: int) -> Tensor:
        return dequantized(weight, dtype)

    return tiles.Tiles(n, k, whole, whole, n, k, tile_bytes=None)


_workspaces: dict[torch.device, Tensor] = {}


def workspace(device: torch.device, count: int, dtype: torch.dtype) -> Tensor:
    """[count] values of `dtype` that every product on `device` overwrites: safe because a stream runs them in order."""
    needed = count * dtype.itemsize
    held = _workspaces.get(device)
    if held is None or held.numel() < needed:
        _workspaces.pop(device, None)  # freed before the larger one is made
        held = _workspaces[device] = torch.empty(needed, dtype=torch.uint8, device=device)
    return held[:needed].view(dtype)


def _tiles_forward(x: Tensor, weight: Weight, bias: Tensor | None, u: Tensor | None, b: Tensor | None) -> Tensor:
    return tiles.forward(x, cut(weight, x.dtype), bias, u, b)


def _tiles_backward(g: Tensor, weight: Weight, v: Tensor | None, a: Tensor | None) -> Tensor:
    return tiles.backward(g, cut(weight, g.dtype), v, a)


def _dequantize_forward(x: Tensor, weight: Weight, bias: Tensor | None, u: Tensor | None, b: Tensor | None) -> Tensor:
    return tiles.forward(x, _whole(weight, x.dtype), bias, u, b)


def _dequantize_backward(g: Tensor, weight: Weight, v: Tensor | None, a: Tensor | None) -> Tensor:
    return tiles.backward(g, _whole(weight, g.dtype), v, a)


def _triton_forward(x: Tensor, weight: Weight, bias: Tensor | None, u: Tensor | None, b: Tensor | None) -> Tensor:
    bias, u, b = _cast(bias, x.dtype), _cast(u, x.dtype), _cast(b, x.dtype)
    if isinstance(weight, FourBitWeight):
        from pefttool_kernels.triton.forward_4bit import linear_4bit

        return linear_4bit(x, weight, bias, u, b)
    from pefttool_kernels.triton.eight_bit import linear_8bit

    return linear_8bit(x, weight, bias, u, b)


def _triton_backward(g: Tensor, weight: Weight, v: Tensor | None, a: Tensor | None) -> Tensor:
    v, a = _cast(v, g.dtype), _cast(a, g.dtype)
    if isinstance(weight, FourBitWeight):
        from pefttool_kernels.triton.backward_4bit import linear_4bit_dx

        return linear_4bit_dx(g, weight, v, a)
    from pefttool_kernels.triton.eight_bit import linear_8bit_dx

    return linear_8bit_dx(g, weight, v, a)


def _native_forward(x: Tensor, weight: Weight, bias: Tensor | None, u: Tensor | None, b: Tensor | None) -> Tensor:
    from pefttool_kernels.cpu import native

    if not isinstance(weight, FourBitWeight):
        raise BackendError("backend 'native' reads weights of 4 bits only")
    return native.linear_4bit(x, weight, bias, u, b)


def roundings(backend: str, x: Tensor, weight: Weight, updated: bool) -> int:
    """How often a forward product of x [M, K] is rounded to x's dtype on its way, with a low-rank update or without.

    bitsandbytes' fused kernel takes no update: what it gives is rounded, and so is the sum. For a few rows that is the
    price of not writing the weight; for more of them the weight is written, and there is one rounding, as elsewhere.
    """
    return 2 if backend == "bitsandbytes" and updated and _fused_by_library(x, weight, updated) else 1


def _fused_by_library(x: Tensor, weight: Weight, updated: bool) -> bool:
    return isinstance(weight, FourBitWeight) and x.is_cuda and (not updated or x.shape[0] <= BITSANDBYTES_ROWS)


def _library_forward(x: Tensor, weight: Weight, bias: Tensor | None, u: Tensor | None, b: Tensor | None) -> Tensor:
    if isinstance(weight, EightBitWeight) or not _fused_by_library(x, weight, u is not None):
        return tiles.forward(x, _library(weight, x.dtype), bias, u, b)
    nested = weight.nested_absmax is not None
    output: Tensor = torch.ops.bitsandbytes.gemm_4bit.default(
        x,
        weight.packed.view(-1, 1),
        (weight.out_features, weight.in_features),
        weight.nested_absmax if nested else weight.absmax,
        BLOCK,
        weight.quant_type,
        bias=None if bias is None else bias.to(x.dtype),
        absmax_8bit=weight.absmax if nested else None,
        absmax_code=weight.nested_code,
        absmax_offset=weight.offset,
    )
    return output if u is None or b is None else output.addmm_(u.to(x.dtype), b.t().to(x.dtype))


def _library_backward(g: Tensor, weight: Weight, v: Tensor | None, a: Tensor | None) -> Tensor:
    return tiles.backward(g, _library(weight, g.dtype), v, a)


def dequantized(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The whole weight [N, K], by bitsandbytes' operators: any in_features."""
    if isinstance(weight, EightBitWeight):
        return tiles.eight_bit(weight, dtype).rows(0, weight.out_features)
    return tiles.dequantize_4bit(
        weight.packed, tiles.scales(weight), weight.quant_type, weight.out_features, weight.in_features, dtype
    )


def dequantize(backend: str, weight: FourBitWeight, dtype: torch.dtype) -> Tensor:
    """The whole weight [N, K] as a tensor of its own."""
    if backend == "bitsandbytes":
        return dequantized(weight, dtype)
    from pefttool_kernels.triton.dequantize import dequantize_4bit

    return dequantize_4bit(weight, dtype)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype).contiguous()


_FORWARD: dict[str, Callable[..., Tensor]] = {
    "triton": _triton_forward,
    "dequantize": _dequantize_forward,
    "tiles": _tiles_forward,
    "native": _native_forward,
    "bitsandbytes": _library_forward,
}
_BACKWARD: dict[str, Callable[..., Tensor]] = {
    "triton": _triton_backward,
    "dequantize": _dequantize_backward,
    "tiles": _tiles_backward,
    "bitsandbytes": _library_backward,
}
