"""A safetensors file that is written and read in sections: one section is what is fetched together.

    8 bytes n | JSON header of n bytes, padded | section 0 | section 1 | ...

Sections begin at a multiple of a memory page, tensors at a multiple of 64 bytes (a GPU reads 16 at a time); what lies
between is a tensor too, called `padding.N`, for the format knows no gaps. The file is mapped, never read whole: its
tensors are views whose pages come from disk when they are touched, and can be given back.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.files.safetensors_file import CODES, NAMES, content, framed, read_header

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT = 64
PADDING = "padding."


class Unreadable(ValueError):
    """The file is not one that `write` made, or is not all there."""


@dataclass(frozen=True)
class Entry:
    """A tensor's dtype (torch's name for it), shape, and the bytes [start, end) of its section that it takes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class TensorSection:
    """Tensors that lie one behind another, in `size` bytes: a multiple of a page."""

    entries: Mapping[str, Entry]
    size: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> TensorSection:
        """Room for tensors of these shapes and dtypes, real or not."""
        entries, at = {}, 0
        for name, tensor in tensors.items():
            end = at + tensor.numel() * tensor.element_size()
            entries[name] = Entry(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), at, end)
            at = _rounded(end, ALIGNMENT)
        return cls(entries, _rounded(at, mmap.PAGESIZE))

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The tensors in `flat`, uint8 of `size` or more values: views of it."""
        import torch

        return {
            name: flat[entry.start : entry.end].view(getattr(torch, entry.dtype)).view(entry.shape)
            for name, entry in self.entries.items()
        }

    def gaps(self) -> Iterator[tuple[int, int]]:
        """The bytes [start, end) that belong to no tensor."""
        at = 0
        for entry in self.entries.values():
            if entry.start > at:
                yield at, entry.start
            at = entry.end
        if self.size > at:
            yield at, self.size


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def write(
    path: Path, sections: Sequence[TensorSection], tensor: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> None:
    """Write the file aside, tensor by tensor as `tensor(name)` gives them, and put it in its place when it is whole.

    ValueError if a tensor is not what its section has room for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with aside.open("wb") as file:
            file.write(_header(sections, metadata))
            for section in sections:
                at = 0
                for name, entry in section.entries.items():
                    file.write(bytes(entry.start - at))
                    file.write(_raw(name, entry, tensor(name)))
                    at = entry.end
                file.write(bytes(section.size - at))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _raw(name: str, entry: Entry, tensor: Tensor) -> memoryview:
    found = (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
    if found != (entry.dtype, entry.shape):
        raise ValueError(f"{name} is {found[0]} {found[1]}, expected {entry.dtype} {entry.shape}")
    return content(tensor)


def _header(sections: Sequence[TensorSection], metadata: Mapping[str, str]) -> bytes:
    document: dict[str, Any] = {}
    base = padding = 0
    for section in sections:
        parts = [(e.start, e.end, name, CODES[e.dtype], list(e.shape)) for name, e in section.entries.items()]
        for start, end in section.gaps():
            parts.append((start, end, f"{PADDING}{padding}", "U8", [end - start]))
            padding += 1
        for start, end, name, code, shape in sorted(parts):
            document[name] = {"dtype": code, "shape": shape, "data_offsets": [base + start, base + end]}
        base += section.size
    return framed(document, metadata, mmap.PAGESIZE)


class PackedFile:
    """A file that `write` made, mapped. Raises Unreadable, or OSError.

    Writing to a tensor changes this process's copy of a page, never the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.stat().st_size:
            raise Unreadable(f"{path} is empty")
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        try:
            header, self.metadata, self._base = read_header(self._map)
            self.entries = {n: _entry(e) for n, e in header.items() if not n.startswith(PADDING)}
            end = max(int(entry["data_offsets"][1]) for entry in header.values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreadable(f"{path} has no header of a packed file") from error
        if len(self._map) != self._base + end:
            raise Unreadable(f"{path} has {len(self._map)} bytes, expected {self._base + end}")

    def tensor(self, name: str) -> Tensor:
        """A view of the map."""
        import torch

        entry = self.entries[name]
        return self._flat(entry.start, entry.end).view(getattr(torch, entry.dtype)).view(entry.shape)

    def find(self, section: TensorSection) -> int:
        """Where this section begins. Unreadable if it is not in the file as it is described."""
        first = next(iter(section.entries))
        start = self.entries[first].start if first in self.entries else -1
        for name, entry in section.entries.items():
            moved = Entry(entry.dtype, entry.shape, start + entry.start, start + entry.end)
            if self.entries.get(name) != moved:
                raise Unreadable(f"{self.path} holds {self.entries.get(name)} for {name}, expected {moved}")
        return start

    def flat(self, section: TensorSection, start: int) -> Tensor:
        """The bytes of a section, uint8."""
        return self._flat(start, start + section.size)

    def advise(self, section: TensorSection, start: int, advice: int) -> None:
        """`madvise` for a section's pages; pages that no section shares."""
        self._map.madvise(advice, self._base + start, section.size)

    def _flat(self, start: int, end: int) -> Tensor:
        import torch

        return torch.frombuffer(self._map, dtype=torch.uint8, count=end - start, offset=self._base + start)


def _entry(found: Mapping[str, Any]) -> Entry:
    start, end = found["data_offsets"]
    return Entry(NAMES[found["dtype"]], tuple(found["shape"]), int(start), int(end))
