"""Tensors of a model as the contract sees them: with what quantised weights carry."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pefttool.nn.tensors import CARRIED, tensors_of

if TYPE_CHECKING:
    from torch import Tensor, nn


def content(tensor: Tensor) -> bytes:
    """A digest of shape, dtype and bytes: equal for bit-equal tensors only (-0.0 is not 0.0, NaN equals itself)."""
    import torch

    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype} ".encode() + data).digest()


def snapshot(model: nn.Module) -> dict[str, bytes]:
    """The content of every tensor, by name."""
    return {name: content(tensor) for name, tensor in tensors_of(model)}


def storage(model: nn.Module) -> dict[str, Tensor]:
    """Distinct pieces of memory, each under its first name."""
    found: dict[tuple[int, Any], tuple[str, Tensor]] = {}
    for name, tensor in tensors_of(model):
        if tensor.numel():
            found.setdefault((tensor.data_ptr(), tensor.dtype), (name, tensor))
    return dict(found.values())


def storage_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in storage(model).values())


def changes(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[str]:
    """Names whose content differs or is gone. What is carried may be handed on, as bitsandbytes' int8 does."""
    gone = [name for name in before if name not in after and CARRIED not in name]
    return gone + [name for name in before if name in after and before[name] != after[name]]


def lost(before: Mapping[str, bytes], model: nn.Module) -> list[str]:
    """Names in `before` (one for each piece of memory) whose content is nowhere in `model`, under whatever name."""
    left = Counter(content(tensor) for tensor in storage(model).values())
    missing = []
    for name, digest in before.items():
        left[digest] -= 1
        if left[digest] < 0:
            missing.append(name)
    return missing


def close(a: Tensor, b: Tensor) -> float:
    """The relative difference of two tensors (Frobenius); 0 where both vanish, NaN where one holds a NaN."""
    a, b = a.detach().double(), b.detach().double()
    scale = float(a.norm())
    return float((a - b).norm()) / scale if scale else float(b.norm())


def same_gradient(a: Tensor, b: Tensor, largest: float, tolerance: float) -> bool:
    """Equal to `tolerance`, relatively. `largest` is the norm of the model's largest gradient: what is a millionth of
    it is 0 but for rounding (a key's bias under softmax), and must be so in both."""
    nothing = 1e-6 * largest
    if float(a.norm()) <= nothing:
        return float(b.norm()) <= nothing
    return close(a, b) <= tolerance
