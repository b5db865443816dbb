"""Writing and reading safetensors a tensor at a time: no more of a file is in memory than the tensor in hand.

The safetensors library writes what is all in memory, and maps what it reads for as long as a tensor of it lives.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.packed_file import CODES, DTYPES

if TYPE_CHECKING:
    from torch import Tensor

#: What transformers looks for before it opens a file.
METADATA = {"format": "pt"}


@dataclass(frozen=True)
class Shape:
    """A tensor that is not here: torch's name for its dtype, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        import torch

        return math.prod(self.shape) * int(getattr(torch, self.dtype).itemsize)


def write(path: Path, shapes: Mapping[str, Shape], tensor: Callable[[str], Tensor]) -> None:
    """Write `path` with what `tensor(name)` gives for each name, and fsync it.

    The widest dtypes come first, as in the library's own files, so that every tensor is aligned. Raises ValueError for
    a tensor that is not of its shape and dtype, OSError for a disk that will not take it.
    """
    import torch

    names = sorted(shapes, key=lambda name: (-getattr(torch, shapes[name].dtype).itemsize, name))
    header: dict[str, Any] = {"__metadata__": METADATA}
    at = 0
    for name in names:
        end = at + shapes[name].size
        header[name] = {
            "dtype": CODES[shapes[name].dtype],
            "shape": list(shapes[name].shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(_raw(name, shapes[name], tensor(name)))
        file.flush()
        os.fsync(file.fileno())


def _raw(name: str, expected: Shape, tensor: Tensor) -> memoryview:
    import torch

    found = Shape(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
    if found != expected:
        raise ValueError(f"{name} is {found}, expected {expected}")
    flat: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return memoryview(flat.numpy())


class Reader:
    """A safetensors file by name. Its header is read once, a tensor's bytes when they are asked for, and copied.

    Raises ValueError for a file whose header cannot be read; check it with `model_files.check_folder` before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        self._base = 8 + length
        self._offsets = {name: entry["data_offsets"] for name, entry in header.items()}
        self.shapes = {n: Shape(DTYPES.get(e["dtype"], e["dtype"]), tuple(e["shape"])) for n, e in header.items()}

    def tensor(self, name: str) -> Tensor:
        import torch

        start, end = self._offsets[name]
        shape = self.shapes[name]
        flat = torch.empty(end - start, dtype=torch.uint8)
        with self.path.open("rb") as file:
            file.seek(self._base + start)
            view: Any = flat.numpy()
            if file.readinto(memoryview(view)) != end - start:
                raise ValueError(f"{self.path} is cut off in {name}")
        return flat.view(getattr(torch, shape.dtype)).view(shape.shape)
