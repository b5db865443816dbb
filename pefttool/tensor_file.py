"""Safetensors, written piece by piece: no second copy of the tensors in memory, and the hash on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NAMES = {
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "uint8": "U8",
    "bool": "BOOL",
}

#: What a file holds: name -> (dtype, shape).
Shapes = Mapping[str, tuple["torch.dtype", tuple[int, ...]]]


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}


def size(spec: tuple[Any, tuple[int, ...]]) -> int:
    """Bytes of one tensor."""
    dtype, shape = spec
    total = int(dtype.itemsize)
    for length in shape:
        total *= length
    return total


def offsets(shapes: Shapes) -> dict[str, int]:
    """Where each tensor begins behind the header: those of wide elements first, so that all are aligned."""
    found, at = {}, 0
    for name in sorted(shapes, key=lambda n: (-shapes[n][0].itemsize, n)):
        found[name] = at
        at += size(shapes[name])
    return found


def header(shapes: Shapes, metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, at in offsets(shapes).items():
        dtype, shape = shapes[name]
        entries[name] = {
            "dtype": NAMES[str(dtype).removeprefix("torch.")],
            "shape": list(shape),
            "data_offsets": [at, at + size(shapes[name])],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def content(tensor: Tensor) -> memoryview:
    """A tensor's bytes, without a copy where it lies in one piece on the CPU."""
    import torch

    data: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(data)


def pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The whole file, header first."""
    shapes = shapes_of(tensors)
    yield header(shapes, {})
    for name in offsets(shapes):
        if tensors[name].numel():
            yield content(tensors[name])
