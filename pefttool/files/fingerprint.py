"""Keys of what is kept on disk: a hash over everything that its bytes depend on. What cannot be hashed has no key.

And checksums of tensors, for noticing in passing that one has changed: by accident, not by an adversary.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pefttool.api.values import Row
from pefttool.files.model_folder import OTHER_WEIGHTS, TEMPLATES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Told apart by their versions; any other package by its sources, which change while it is being written.
LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "bitsandbytes", "safetensors", "numpy")
#: Bytes of a tensor up to which asking zlib is quicker than a few of PyTorch's operators.
SMALL = 1 << 16


#: Values of columns that are told by their text.
LASTING = (date, datetime, time, timedelta, Decimal, UUID)


class Unknowable(Exception):
    """Something that bytes depend on has no lasting form: nothing can be kept under its name."""


def key(**parts: Any) -> str:
    """SHA-256, in hexadecimal, over named plain values. Raises Unknowable for other values."""
    return hashlib.sha256(_text(parts).encode()).hexdigest()


def _text(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, default=_lasting)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unknowable(str(error)) from error


def _lasting(value: Any) -> dict[str, str]:
    """What columns of data hold besides JSON's values, told apart from text that looks alike."""
    if isinstance(value, bytes):
        return {"\0bytes": value.hex()}
    if isinstance(value, LASTING):
        return {f"\0{type(value).__name__}": str(value)}
    raise TypeError(f"{type(value).__name__} has no lasting form")


def rows(given: Sequence[Row]) -> str:
    """Hash of the rows' values, in their order; files and lines do not count. Raises Unknowable."""
    digest = hashlib.sha256()
    for row in given:
        try:
            # Not sorted: a chat template may write a mapping in its own order.
            text = json.dumps(dict(row.values), default=_lasting)
        except (TypeError, ValueError, RecursionError) as error:
            raise Unknowable(f"{row.place}: {error}") from error
        digest.update(text.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def files(paths: Iterable[str]) -> str:
    """Hash over the contents of these files, in their order. Raises OSError."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{_of_file(Path(path))}\n".encode())
    return digest.hexdigest()


def processor_files(folder: Path) -> dict[str, str]:
    """Hashes of all files that a processor may be loaded from: everything in a model's folder but its weights."""
    files = [p for p in (*folder.iterdir(), *(folder / TEMPLATES).glob("*")) if p.is_file()]
    chosen = [p for p in files if not p.name.endswith((".safetensors", *OTHER_WEIGHTS))]
    return {p.relative_to(folder).as_posix(): _of_file(p) for p in sorted(chosen)}


def weight_files(folder: Path) -> str:
    """Hash over a model's config and weights, by file name; files that did not change are not read twice."""
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(f"{file.name} {_of_file(file)}\n".encode())
    return digest.hexdigest()


def _of_file(path: Path) -> str:
    state = path.stat()
    return _of_file_as_it_is(path, state.st_size, state.st_mtime_ns, state.st_ino)


@cache
def _of_file_as_it_is(path: Path, size: int, modified: int, inode: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def tensors(named: Mapping[str, Tensor]) -> str:
    """Hash over names, dtypes, shapes and bytes. Raises Unknowable for what is no tensor, or has no bytes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(named.items()):
        if not isinstance(tensor, torch.Tensor) or tensor.device.type == "meta":
            raise Unknowable(f"{name} is no tensor with data")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            data: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            digest.update(data)
    return digest.hexdigest()


def checksums(given: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Two 64-bit sums of each tensor's bytes, as quick as memory is read, and where the tensor lies; of small tensors
    in host memory the CRC.

    Words of eight bytes stand in rows of 512; each row and each column counts with an odd factor of its own, so that
    words that changed places are noticed, too.
    """
    import torch

    found = [(0, 0)] * len(given)
    sums: dict[torch.device, dict[int, Tensor]] = {}
    with torch.no_grad():
        for i, tensor in enumerate(given):
            flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
            if flat.device.type == "cpu" and flat.numel() <= SMALL:
                data: Any = flat.numpy()
                found[i] = (zlib.crc32(data), flat.numel())
            else:
                sums.setdefault(flat.device, {})[i] = _checksum(flat)
        for on_device in sums.values():
            together = torch.stack(list(on_device.values())).tolist()
            for i, (rows, columns) in zip(on_device, together, strict=True):
                found[i] = (rows, columns)
    return found


def _checksum(flat: Tensor) -> Tensor:
    """Of uint8 values: [2] int64 on their device; sums wrap around."""
    import torch

    width = 512
    whole = flat.numel() // (8 * width) * (8 * width)
    words = flat[:whole]
    if words.data_ptr() % 8 or words.storage_offset() % 8:
        words = words.clone()  # PyTorch views words of eight bytes only where they begin at a multiple of eight
    rows = words.view(torch.int64).view(-1 if whole else 0, width)
    rest = flat[whole:].to(torch.int64)
    tail = (rest * _odd(rest.numel(), flat.device)).sum()
    by_row = (rows.sum(1) * _odd(len(rows), flat.device)).sum()
    by_column = (rows.sum(0) * _odd(width, flat.device)).sum()
    return torch.stack([by_row + tail, by_column - tail])


def _odd(count: int, device: torch.device) -> Tensor:
    """`count` different odd numbers."""
    import torch

    return torch.arange(1, 2 * count + 1, 2, dtype=torch.int64, device=device)


def code(objects: Iterable[Any]) -> dict[str, str]:
    """Python's and the libraries' versions, and hashes of the sources of pefttool and of the objects' packages."""
    packages = {"pefttool", *(type(thing).__module__.partition(".")[0] for thing in objects)}
    versions = {name: _version(name) for name in LIBRARIES}
    sources = {name: _sources(name) for name in sorted(packages - set(LIBRARIES))}
    return {"python": sys.version, **versions, **sources}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _sources(package: str) -> str:
    file = getattr(sys.modules.get(package), "__file__", None)
    if file is None:
        if package == "builtins":
            return ""
        raise Unknowable(f"{package} has no source file")
    path = Path(file)
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    return key(files=[[p.relative_to(path.parent).as_posix(), _of_file(p)] for p in files])
