"""A record of what was done to the disk, and folders as a crash would have left them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


class Crash(BaseException):
    """The process is gone: no handler runs."""


@dataclass
class Operation:
    """`name` of the call; `path` below the watched folder; `data` that was written; `target` of a renaming."""

    name: str
    path: str
    data: bytes = b""
    target: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.path}{' -> ' + self.target if self.target else ''}"


@dataclass
class Record:
    """The calls below one folder, in order. The call number `crash_at` is not made any more."""

    root: Path
    crash_at: int | None = None
    error: OSError | None = None
    fail_at: int | None = None
    operations: list[Operation] = field(default_factory=list)

    def note(self, name: str, path: Any, data: bytes = b"", target: Any = "") -> bool:
        """Whether the path is watched; raises what was asked for at this point."""
        if not str(path).startswith(str(self.root)):
            return False
        number = len(self.operations)
        if number == self.crash_at:
            raise Crash
        if number == self.fail_at and self.error is not None:
            self.operations.append(Operation("fails", str(path)))
            raise self.error
        shown = (str(p)[len(str(self.root)) :].lstrip("/") for p in (path, target))
        self.operations.append(Operation(name, next(shown), data, next(shown)))
        return True


NAMES = ("open", "write", "fsync", "close", "rename", "replace", "mkdir", "unlink", "rmdir")


class _Calls:
    """Stands in for functions of `os`: notes them, then makes them."""

    def __init__(self, record: Record) -> None:
        self._record, self._open = record, dict[int, str]()
        self._real = {name: getattr(os, name) for name in NAMES}

    def open(self, path: Any, flags: int, *rest: Any, **more: Any) -> int:
        watched = self._record.note("open" if flags & (os.O_WRONLY | os.O_RDWR) else "open folder", path)
        handle: int = self._real["open"](path, flags, *rest, **more)
        if watched:
            self._open[handle] = str(path)
        return handle

    def write(self, handle: int, data: Any) -> int:
        if handle in self._open:
            self._record.note("write", self._open[handle], bytes(data))
        return int(self._real["write"](handle, data))

    def fsync(self, handle: int) -> None:
        if handle in self._open:
            self._record.note("fsync", self._open[handle])
        self._real["fsync"](handle)

    def close(self, handle: int) -> None:
        self._open.pop(handle, None)
        self._real["close"](handle)

    def __getattr__(self, name: str) -> Any:
        def call(path: Any, *rest: Any, **more: Any) -> None:
            moves = name in ("rename", "replace")
            self._record.note("rename" if moves else name, path, target=rest[0] if moves else "")
            self._real[name](path, *rest, **more)

        return call


@contextmanager
def recorded(record: Record) -> Iterator[Record]:
    """Every open, write, fsync, rename, mkdir, unlink and rmdir below `record.root`."""
    calls = _Calls(record)
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setattr(os, name, getattr(calls, name))
        yield record


class Disk:
    """What a file system may hold after the power fails: synced content and names for certain, the rest as it likes.

    `names`: path -> number of a file, or None for a folder. What was done to names since their folder was last synced
    waits in `loose`; what was written to a file since it was last synced waits in `unsynced`.
    """

    def __init__(self) -> None:
        self.names: dict[str, int | None] = {}
        self.contents: list[bytes] = []
        self.synced: list[bytes] = []
        self.loose: list[tuple[str, Operation, int | None]] = []
        self._live: dict[str, int | None] = {}

    def start(self, files: dict[str, bytes], folders: list[str]) -> None:
        """What is safely there already."""
        for folder in folders:
            self.names[folder] = self._live[folder] = None
        for path, data in files.items():
            self.names[path] = self._live[path] = len(self.contents)
            self.contents.append(data)
            self.synced.append(data)

    def do(self, operation: Operation) -> None:
        path, live = operation.path, self._live
        parent = os.path.dirname(path)
        if operation.name == "open":
            if path not in live:
                live[path] = len(self.contents)
                self.contents.append(b"")
                self.synced.append(b"")
                self.loose.append((parent, operation, live[path]))
            else:  # O_TRUNC
                self.contents[live[path] or 0] = b""
        elif operation.name == "write":
            self.contents[live[path] or 0] += operation.data
        elif operation.name == "fsync" and live.get(path) is not None:
            self.synced[live[path] or 0] = self.contents[live[path] or 0]
        elif operation.name == "fsync":
            keep = []
            for waiting in self.loose:
                if waiting[0] == path:
                    self._apply(self.names, *waiting[1:])
                else:
                    keep.append(waiting)
            self.loose = keep
        elif operation.name in ("mkdir", "unlink", "rmdir", "rename"):
            self._apply(live, operation, None)
            self.loose.append((parent, operation, live.get(path)))

    @staticmethod
    def _apply(names: dict[str, int | None], operation: Operation, file: int | None) -> None:
        path = operation.path
        if operation.name == "open":
            names[path] = file
        elif operation.name == "mkdir":
            names[path] = None
        elif operation.name in ("unlink", "rmdir"):
            names.pop(path, None)
        else:
            for old in [n for n in names if n == path or n.startswith(path + "/")]:
                names[operation.target + old[len(path) :]] = names.pop(old)

    def leave(self, folder: Path, survives: Any, whole: Any) -> None:
        """Write what is left: of loose names those that `survive(i)`, of unsynced content all that is `whole(i)`.

        A name whose folder is not there is lost with it.
        """
        names = dict(self.names)
        for i, (_, operation, file) in enumerate(self.loose):
            if survives(i):
                self._apply(names, operation, file)
        for path in sorted(names):
            parent = os.path.dirname(path)
            if parent and parent not in names:
                continue
            file = names[path]
            if file is None:
                (folder / path).mkdir(parents=True, exist_ok=True)
            elif (folder / path).parent.is_dir():
                (folder / path).write_bytes(self.contents[file] if whole(file) else self.synced[file])
