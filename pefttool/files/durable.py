"""Changes to the disk that survive a crash, one `os` call each: so a test can list them, and stop at any of them.

A file's content is on the disk once the file is synced; that the file is there, renamed or gone, once its folder is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

BINARY = getattr(os, "O_BINARY", 0)  # Windows
PARTIAL = ".partial"


def write(path: Path, content: Iterable[bytes | memoryview]) -> str:
    """Write a file, whole and synced; returns its SHA-256. Raises OSError."""
    digest = hashlib.sha256()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)
    try:
        for part in content:
            digest.update(part)
            rest = memoryview(part).cast("B")
            while rest:
                rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    return digest.hexdigest()


def replace(path: Path, content: bytes) -> None:
    """Put a whole file in the place of the one that is there, if any: readers find either. Raises OSError."""
    aside = path.with_name(f".{path.name}{PARTIAL}")
    try:
        write(aside, [content])
        os.replace(aside, path)
    except OSError:
        with suppress(OSError):
            os.unlink(aside)
        raise
    sync_folder(path.parent)


def rename(old: Path, new: Path) -> None:
    """Give a folder its name, where none of that name is. Raises OSError."""
    os.rename(old, new)
    sync_folder(new.parent)


def publish(aside: Path, target: Path) -> None:
    """Have a folder that others wrote on the disk, and then under its own name; what was there before goes.

    Raises OSError. (A checkpoint syncs each file while it is written, and is marked: `runs.checkpoint.save`.)
    """
    for path in aside.rglob("*"):
        if path.is_file():
            sync(path)
    sync_folder(aside)
    shutil.rmtree(target, ignore_errors=True)
    rename(aside, target)


def sync_folder(folder: Path) -> None:
    """Have names in this folder on the disk; Windows does that by itself."""
    if os.name == "posix":
        sync(folder)


def sync(path: Path) -> None:
    """Have what others wrote here on the disk."""
    handle = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | BINARY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(folder: Path, first: str = "") -> None:
    """Remove a folder of files, the file called `first` before the others; what is not there is gone already."""
    try:
        names = sorted(os.listdir(folder), key=lambda name: name != first)
    except FileNotFoundError:
        return
    for name in names:
        os.unlink(folder / name)
    os.rmdir(folder)
