"""Make a folder once: written aside, renamed when complete, made again only when what it is made from has changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

ORIGIN = ".origin.json"


def materialise(target: Path, origin: dict[str, str], make: Callable[[Path], None]) -> Path:
    """`target`, after `make(folder)` has filled it if it was not there or was made from another `origin`.

    Of two processes one makes and the other waits. A killed `make` leaves nothing under the name `target`.
    """
    from filelock import FileLock

    if _origin(target) == origin:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        if _origin(target) == origin:
            return target
        fresh = target.parent / f".{target.name}.new"
        stale = target.parent / f".{target.name}.old"
        for leftover in (fresh, stale):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir()
        make(fresh)
        (fresh / ORIGIN).write_text(json.dumps(origin, indent=1), encoding="utf-8")
        for path in fresh.rglob("*"):
            if path.is_file():
                _flush(path)
        if target.exists():
            target.rename(stale)
        fresh.rename(target)
        shutil.rmtree(stale, ignore_errors=True)
    return target


def is_made(target: Path) -> bool:
    """Whether `target` is complete, whatever it was made from."""
    return _origin(target) is not None


def _origin(target: Path) -> dict[str, str] | None:
    try:
        found = json.loads((target / ORIGIN).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _flush(path: Path) -> None:
    """To the disk, so that a power cut after the rename cannot leave an empty file under a complete name."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
