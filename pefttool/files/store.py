"""What can be made again and is slow to make, on disk: tensors by key, memory-mapped, bounded, never half-written.

A file is safetensors, `KEY.safetensors`, written aside, synced and renamed. Its metadata holds the SHA-256 of the whole
file (with zeros in the hash's own place), which is checked before anything is used: a damaged file is as good as none.
A file's modification time says when it was last used; the least recently used ones make room for new ones.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.files import durable, safetensors_file
from pefttool.files.cache_folder import cache_folder
from pefttool.files.safetensors_file import Shapes

if TYPE_CHECKING:
    from torch import Tensor

#: Bytes that a store may take.
LIMIT = 10 << 30
#: Bytes of the disk that a store leaves to others.
SPARE = 1 << 30
#: Seconds after which a file that nobody finished writing is somebody's who was killed.
ABANDONED = 24 * 3600
SUFFIX, PARTIAL, LOCK = ".safetensors", ".partial", ".lock"
HASH = "sha256"
NO_HASH = "0" * 64
#: `put(name, index, tensor)` writes `tensor` to `[index : index + len(tensor)]` of the tensor called `name`.
Put = Callable[[str, int, "Tensor"], None]


def of_user(tell: Callable[[str], None]) -> Store:
    """The store in the user's cache folder, which all runs share."""
    return Store(cache_folder() / "made", tell)


class Unwritable(Exception):
    """The disk is full, read-only, or not there."""


class Partial:
    """A file being written. What was `put` can be read through `tensor`; `finish` gives it its name in the store.

    A process that ends without `finish` leaves nothing. Every method that writes raises Unwritable.
    """

    def __init__(self, folder: Path, key: str, shapes: Shapes, header: bytes) -> None:
        handle, name = tempfile.mkstemp(PARTIAL, f"{key}.", folder)
        self._aside, self._final = Path(name), folder / f"{key}{SUFFIX}"
        self._shapes, self._header = shapes, header
        self._file = os.fdopen(handle, "r+b")
        self._remove = weakref.finalize(self, self._aside.unlink, missing_ok=True)
        try:
            self._file.truncate(len(header) + sum(map(safetensors_file.size, shapes.values())))
        except OSError:
            self.discard()
            raise
        self.put: Put = _putter(self._file, shapes, len(header))

    def tensor(self, name: str) -> Tensor:
        """Mapped from the file: only what was put is read from the disk, and stays readable when the file is gone."""
        import torch

        dtype, shape = self._shapes[name]
        count = safetensors_file.size((dtype, shape)) // dtype.itemsize
        at = len(self._header) + safetensors_file.offsets(self._shapes)[name]
        if not count:
            return torch.empty(shape, dtype=dtype)
        mapped = mmap.mmap(self._file.fileno(), 0)
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=at).view(shape)

    def finish(self) -> None:
        with _writing():
            _finish(self._file, self._header, self._shapes)
            os.replace(self._aside, self._final)
            durable.sync_folder(self._final.parent)
        self.discard()

    def discard(self) -> None:
        """Close the file, and remove it unless it is finished."""
        with suppress(OSError):  # what a full disk kept from being written
            self._file.close()
        self._remove()


class Store:
    """The files of one folder. Nothing that goes wrong with it ends a run: `tell` is given one line about it, once."""

    def __init__(self, folder: Path, tell: Callable[[str], None], limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit
        self._tell: Callable[[str], None] | None = tell

    def load(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of `key`, mapped from their file and read as they are used, or None."""
        from safetensors import SafetensorError, safe_open

        path = self._path(key)
        try:
            if not _is_whole(path):
                path.unlink()
                return None
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            with suppress(OSError):  # a file that may be read need not be ours to mark
                os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            self.complain(error)
            return None
        return tensors

    def make(self, key: str, shapes: Shapes, fill: Callable[[Put], None]) -> None:
        """Write the tensors of `key`; `fill` puts them there part by part. If the disk fails, `key` has no file."""
        partial = self.begin(key, shapes)
        if partial is None:
            return
        try:
            fill(partial.put)
            partial.finish()
        except Unwritable as error:
            self.complain(error)
        finally:
            partial.discard()

    def begin(self, key: str, shapes: Shapes) -> Partial | None:
        """A file for the tensors of `key` that is filled bit by bit and is nobody else's yet; None without room."""
        try:
            with _writing():
                header = safetensors_file.header(shapes, {HASH: NO_HASH})
                self._make_room(len(header) + sum(map(safetensors_file.size, shapes.values())))
                return Partial(self.folder, key, shapes, header)
        except Unwritable as error:
            self.complain(error)
            return None

    def save(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write whole tensors."""

        def fill(put: Put) -> None:
            for name, tensor in tensors.items():
                put(name, 0, tensor)

        self.make(key, safetensors_file.shapes_of(tensors), fill)

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Wait until no other process is inside for this key: what one makes, the others then find."""
        from filelock import FileLock

        lock = FileLock(self._path(key).with_suffix(LOCK))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, NotImplementedError) as error:  # then each makes its own
            self.complain(error)
        try:
            yield
        finally:
            with suppress(OSError):
                lock.release()
                os.unlink(lock.lock_file)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _make_room(self, size: int) -> None:
        """Remove what was used least recently until `size` bytes more are within the limit. Raises OSError."""
        import shutil

        self.folder.mkdir(parents=True, exist_ok=True)
        if size > self.limit:
            raise OSError(f"{size >> 20} MiB are more than its limit of {self.limit >> 20} MiB")
        held = []
        for path in self.folder.iterdir():
            with suppress(OSError):  # another process may have removed it
                state = path.stat()
                if path.suffix == SUFFIX:
                    held.append((state.st_mtime_ns, state.st_size, path))
                elif path.suffix == PARTIAL and time.time() - state.st_mtime > ABANDONED:
                    path.unlink()
        total = sum(bytes_ for _, bytes_, _ in held)
        for _, bytes_, path in sorted(held):
            if total + size <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= bytes_
        free = shutil.disk_usage(self.folder).free
        if size + SPARE > free:
            raise OSError(f"{size >> 20} MiB do not fit: {free >> 20} MiB are free, {SPARE >> 20} are left to others")

    def complain(self, error: BaseException) -> None:
        if self._tell is not None:
            reason = " ".join(str(error).split())
            self._tell(f"the cache in {self.folder} cannot be used: {reason}; going on without")
            self._tell = None


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unwritable(error) from error


def _putter(file: Any, shapes: Shapes, start: int) -> Put:

    offsets = safetensors_file.offsets(shapes)

    def put(name: str, index: int, tensor: Tensor) -> None:
        dtype, shape = shapes[name]
        end = index + len(tensor)
        assert tensor.dtype == dtype and tuple(tensor.shape[1:]) == shape[1:] and 0 <= index <= end <= shape[0]
        if not tensor.numel():
            return
        width = safetensors_file.size((dtype, shape[1:]))
        with _writing():  # not through a mapping: a full disk would end the process
            file.seek(start + offsets[name] + index * width)
            file.write(safetensors_file.content(tensor))
            file.flush()

    return put


def _finish(file: Any, header: bytes, shapes: Shapes) -> None:
    """Write the header and the hash, and have all of it on the disk."""
    file.truncate(len(header) + sum(map(safetensors_file.size, shapes.values())))
    file.seek(0)
    file.write(header)
    file.flush()
    file.seek(0)
    digest = hashlib.file_digest(file, HASH).hexdigest()
    file.seek(0)
    file.write(safetensors_file.header(shapes, {HASH: digest}))
    file.flush()
    os.fsync(file.fileno())


def _is_whole(path: Path) -> bool:
    """Whether the file has the hash that it states. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(8)
        size = int.from_bytes(head, "little")
        if len(head) < 8 or size > path.stat().st_size:
            return False
        text = file.read(size)
        try:
            stated = str(json.loads(text)["__metadata__"][HASH])
        except (ValueError, LookupError, TypeError):
            return False
        digest = hashlib.new(HASH, head + text.replace(stated.encode(), NO_HASH.encode(), 1))
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == stated
