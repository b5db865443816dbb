"""Safetensors, written and read piece by piece: no more of a file is in memory than the tensor in hand.

The safetensors library writes what is all in memory, and maps what it reads for as long as a tensor of it lives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pefttool.api.errors import ModelError
from pefttool.files import durable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: torch's names of dtypes, and the format's.
CODES = {
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "bool": "BOOL",
}
NAMES = {code: name for name, code in CODES.items()}
#: The format's own limit on its header, in bytes.
MAX_HEADER = 100_000_000
#: What transformers looks for before it opens a file.
METADATA = {"format": "pt"}

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
    entries: dict[str, Any] = {}
    for name, at in offsets(shapes).items():
        dtype, shape = shapes[name]
        entries[name] = {
            "dtype": CODES[str(dtype).removeprefix("torch.")],
            "shape": list(shape),
            "data_offsets": [at, at + size(shapes[name])],
        }
    return framed(entries, metadata)


def framed(entries: Mapping[str, Any], metadata: Mapping[str, str], multiple: int = 8) -> bytes:
    """A file's beginning: the header's length and the header, filled up so that the tensors begin at a `multiple`."""
    text = json.dumps(({"__metadata__": dict(metadata)} if metadata else {}) | dict(entries)).encode()
    text += b" " * (-(8 + len(text)) % multiple)
    return len(text).to_bytes(8, "little") + text


class Bytes(Protocol):
    """An open file, or a mapped one."""

    def read(self, size: int, /) -> bytes: ...


def read_header(file: Bytes) -> tuple[dict[str, Any], dict[str, str], int]:
    """(entries, metadata, where the tensors begin). ValueError if there is no header in the file."""
    length = int.from_bytes(file.read(8), "little")
    text = file.read(length) if length <= MAX_HEADER else b""
    if len(text) != length:
        raise ValueError("no header, or it is cut off")
    entries: dict[str, Any] = json.loads(text)
    return entries, entries.pop("__metadata__", {}), 8 + length


def content(tensor: Tensor) -> memoryview:
    """A tensor's bytes, without a copy where it lies in one piece on the CPU."""
    import torch

    data: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(data)


def pieces(
    shapes: Shapes, tensor: Callable[[str], Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The whole file, header first, with what `tensor(name)` gives for each name when it is due.

    Raises ValueError for a tensor that is not of its shape and dtype.
    """
    yield header(shapes, metadata or {})
    for name in offsets(shapes):
        found = tensor(name)
        if (found.dtype, tuple(found.shape)) != shapes[name]:
            raise ValueError(f"{name} is {found.dtype} {tuple(found.shape)}, expected {shapes[name]}")
        if found.numel():
            yield content(found)


def whole(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The whole file of these tensors."""
    return pieces(shapes_of(tensors), tensors.__getitem__)


def write(path: Path, shapes: Shapes, tensor: Callable[[str], Tensor]) -> None:
    """Write a file that transformers reads, whole and synced. Raises as `pieces` does, and OSError."""
    durable.write(path, pieces(shapes, tensor, METADATA))


class Reader:
    """A file by name. Its header is read once, a tensor's bytes when they are asked for, and copied.

    Raises ValueError for a file whose header cannot be read (check it with `model_files.check_folder` before), and
    ModelError for a dtype that this torch does not have.
    """

    def __init__(self, path: Path) -> None:
        import torch

        self.path = path
        with path.open("rb") as file:
            entries, _, self._base = read_header(file)
        self._offsets = {name: entry["data_offsets"] for name, entry in entries.items()}
        self.shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for name, entry in entries.items():
            dtype = getattr(torch, NAMES.get(entry["dtype"], ""), None)
            if dtype is None:
                known = ", ".join(CODES.values())
                raise ModelError(f"{path}: {name} is of dtype {entry['dtype']}; convert it to one of {known}")
            self.shapes[name] = (dtype, tuple(entry["shape"]))

    def tensor(self, name: str) -> Tensor:
        import torch

        start, end = self._offsets[name]
        dtype, shape = self.shapes[name]
        flat = torch.empty(end - start, dtype=torch.uint8)
        with self.path.open("rb") as file:
            file.seek(self._base + start)
            view: Any = flat.numpy()
            if file.readinto(memoryview(view)) != end - start:
                raise ValueError(f"{self.path} is cut off in {name}")
        return flat.view(dtype).view(shape)
