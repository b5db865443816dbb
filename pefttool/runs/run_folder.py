"""Whose a run folder is and how far it got: one command at a time, started over, gone on with, or left alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pefttool.api.errors import UsageError
from pefttool.files.durable import PARTIAL
from pefttool.runs import checkpoint

RECIPE, PLAN, ENVIRONMENT, EVENTS, METRICS, ADAPTER, REJECTS, CHECK = (
    "recipe.yaml",
    "plan.json",
    "environment.json",
    "events.jsonl",
    "metrics.json",
    "adapter",
    "bad_rows.jsonl",
    "check.json",
)
#: In the metrics: what failed after the last step, and why.
UNFINISHED = "unfinished"
CHECKPOINTS, LOCK, REHEARSAL, WITNESS = "checkpoints", ".lock", ".rehearsal", ".witness"
#: What a run writes, beside hidden files that it works in: a folder that holds anything else is not only a run's.
OURS = {RECIPE, PLAN, ENVIRONMENT, EVENTS, METRICS, ADAPTER, REJECTS, CHECK, CHECKPOINTS}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other command works in this folder meanwhile. The lock ends with the process, however that ends.

    Raises UsageError where another has it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"{folder} is in use by another pefttool command: wait until that ends, or choose another --out"
        ) from error
    except OSError as error:
        raise UsageError(f"out: {folder} cannot be written: {error.strerror}; choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def is_finished(folder: Path) -> bool:
    """Metrics are written last, and name what could not be done after training."""
    return (folder / METRICS).is_file() and not unfinished(folder)


def unfinished(folder: Path) -> Mapping[str, str]:
    """What failed after the last step, and why; empty where nothing did, or training is not over yet."""
    try:
        found = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    left = found.get(UNFINISHED) if isinstance(found, dict) else None
    return left if isinstance(left, dict) else {}


def may_start(folder: Path) -> None:
    """Raises UsageError unless a run can start in this folder: there is none, or what is there is of no use.

    A run without a complete checkpoint has nothing to go on from, and is started over.
    """
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
    if not names or names == {LOCK}:
        return
    hidden = {name for name in names if name.startswith(".")}
    newest, _ = checkpoint.newest(folder / CHECKPOINTS)
    ended = is_finished(folder) or (newest is None and unfinished(folder))
    if LOCK not in names or names - hidden - OURS or ended:
        raise UsageError(f"out: {folder} exists and is not empty: choose another --out, or remove it")
    if newest is not None:
        raise UsageError(
            f"out: {folder} holds an unfinished run, whose newest checkpoint is {newest.name}: go on with"
            f" `pefttool resume {folder}`, or choose another --out, or remove it"
        )


def clear(folder: Path, *, but: str = "") -> bool:
    """Remove what an unfinished run left, but for one name; whether there was any. After `may_start`, and `locked`.

    Hidden files that no run makes stay: somebody's notes, or their version control's.
    """
    found = [path for path in folder.iterdir() if path.name != but and (path.name in OURS or _is_aside(path.name))]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return bool(found)


def forget(folder: Path) -> None:
    """Remove what a run left that was refused before it began, and the folder unless it holds anything else.

    The rows that were left out stay: the user was told to look there. The next run may start in this folder.
    """
    with suppress(OSError):
        clear(folder, but=REJECTS)
        if (folder / REJECTS).exists():
            return
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()


def witness(folder: Path) -> Path:
    """The file in which the trained model's answers wait, of a run's folder or of the adapter's in it."""
    return (folder.resolve().parent if folder.resolve().name == ADAPTER else folder) / WITNESS


def _is_aside(name: str) -> bool:
    """What a run works in and takes away again."""
    return name.startswith(".") and (name in (REHEARSAL, WITNESS) or name.endswith(PARTIAL))


def way_on(folder: Path) -> str:
    """What to do once a run in this folder has ended early."""
    if is_finished(folder):
        return f"use it with `pefttool predict {folder}`: it is finished"
    if checkpoint.newest(folder / CHECKPOINTS)[0] is not None:
        return f"go on with `pefttool resume {folder}`"
    if unfinished(folder):
        return f"use what is there with `pefttool predict {folder}`, or start again with another --out"
    return "start again with the same command (no checkpoint was written)"


def to_resume(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The checkpoint to go on from, and why newer ones are passed over. Raises UsageError where there is none."""
    if not (folder / RECIPE).is_file():
        raise UsageError(f"{folder} is no run folder: it has no {RECIPE}; give the folder that `pefttool run` printed")
    if is_finished(folder):
        raise UsageError(
            f"{folder} is finished: there is nothing to resume; use it with `pefttool predict {folder}`, or train on"
            " with another `pefttool run`"
        )
    newest, skipped = checkpoint.newest(folder / CHECKPOINTS)
    if newest is None:
        damaged = f" that is whole ({skipped[0]})" if skipped else ""
        raise UsageError(
            f"{folder} has no checkpoint{damaged}: start again with"
            f" `pefttool run {folder / RECIPE} --out ANOTHER_FOLDER`"
        )
    return newest, skipped
