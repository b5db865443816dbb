"""The whole training state on disk: safetensors and JSON, atomic, hashed, no pickle.

A checkpoint is a folder, written aside, synced, hashed in `manifest.json`, renamed into place, and marked with
`COMPLETE` last, which holds the manifest's hash. What is not marked, or whose hashes differ, is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import RunError
from pefttool.data.batches import Position
from pefttool.files import durable, safetensors_file
from pefttool.files.state_tree import flatten, unflatten
from pefttool.runs.progress import NOTHING, Best, Extras, Restorable, TrainingProgress, watched
from pefttool.setup import random_state

if TYPE_CHECKING:
    from torch import Tensor

OLDER = "remove that folder to go on from an older one"
MANIFEST, COMPLETE, DOCUMENT, STATE = "manifest.json", "COMPLETE", "state.json", "state.safetensors"
#: Files of tensors by name, beside the optimiser's; `parameters` are always there.
PARAMETERS, BEST, BUFFERS = "parameters", "best", "buffers"


def save(folder: Path, progress: TrainingProgress, live: Restorable, beside: Extras = NOTHING) -> Path:
    """Write `folder/step-N`; returns it. Nothing of an unfinished write is ever taken for a checkpoint.

    Raises OSError where the disk fails; what was there before still is.
    """
    state = {
        "optimizer": live.optimizer.state_dict(),
        "scheduler": live.scheduler.state_dict(),
        "scaler": live.scaler.state_dict(),
        "adapter": beside.adapter,
        "best_adapter": beside.best_adapter,
    }
    tensors, skeleton = flatten(state)
    document = {
        "progress": asdict(progress),
        "state": skeleton,
        "random": list(beside.random) or [random_state.capture()],
        "identity": dict(beside.identity),
    }
    files = {PARAMETERS: live.parameters, BEST: beside.best, BUFFERS: beside.buffers}
    final = folder / f"step-{progress.step}"
    if _complete(final):
        return final  # of this step, in this run: it holds the same
    aside = folder / f".step-{progress.step}{durable.PARTIAL}"
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        durable.sync_folder(folder.parent)
    durable.remove(aside)
    aside.mkdir()
    try:
        manifest = {
            f"{name}.safetensors": durable.write(aside / f"{name}.safetensors", safetensors_file.whole(held))
            for name, held in files.items()
            if held or name == PARAMETERS
        }
        manifest[STATE] = durable.write(aside / STATE, safetensors_file.whole(tensors))
        manifest[DOCUMENT] = durable.write(aside / DOCUMENT, [json.dumps(document).encode()])
        mark = durable.write(aside / MANIFEST, [json.dumps(manifest, indent=1).encode()])
        durable.sync_folder(aside)
        durable.remove(final, COMPLETE)  # a damaged one
        durable.rename(aside, final)
        durable.write(final / COMPLETE, [mark.encode()])
        durable.sync_folder(final)
    except OSError:
        with suppress(OSError):
            durable.remove(aside)
        raise
    return final


def prune(folder: Path, keep: int, newest: int) -> None:
    """Remove all but the last `keep` checkpoints up to step `newest`, which was just written and is whole.

    What is of a later step was passed over when the run went on from an earlier one: it is damaged. What is not marked
    was never whole.
    """
    found = {path: _step(path) <= newest and (path / COMPLETE).is_file() for path in _found(folder)}
    kept = [path for path, whole in found.items() if whole][:keep]
    for path in found:
        if path not in kept:
            with suppress(OSError):
                durable.remove(path, COMPLETE)


def load(folder: Path, live: Restorable, rank: int = 0) -> tuple[TrainingProgress, Extras]:
    """Verify a checkpoint folder and put its state back in place; the random state is that of `rank`.

    Raises RunError with the file that is wrong.
    """
    import torch

    document = read(folder)
    try:
        files = {name: _tensors(folder, name) for name in (PARAMETERS, BEST, BUFFERS)}
        stored = files[PARAMETERS]
        if {n: t.shape for n, t in stored.items()} != {n: p.shape for n, p in live.parameters.items()}:
            raise RunError(
                f"checkpoint {folder} holds other parameters than this run trains: resume with its own recipe"
            )
        state = unflatten(document["state"], _tensors(folder, "state"))
        progress = dict(document["progress"])
        progress.update(position=Position(**progress["position"]), best=Best(**progress["best"]))
        progress.update(watched=watched(document))
        with torch.no_grad():
            for name, parameter in live.parameters.items():
                parameter.copy_(stored[name])
        live.optimizer.load_state_dict(state["optimizer"])
        live.scheduler.load_state_dict(state["scheduler"])
        if live.scaler.is_enabled():
            live.scaler.load_state_dict(state["scaler"])
        random = document["random"]
        random_state.restore(random[rank if rank < len(random) else 0])
        beside = Extras(
            files[BEST], files[BUFFERS], state["adapter"], state["best_adapter"], random, document["identity"]
        )
        return TrainingProgress(**progress), beside
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise RunError(f"checkpoint {folder} is not one of this version of pefttool ({reason}): {OLDER}") from error


def read(folder: Path) -> dict[str, Any]:
    """`state.json` of a verified checkpoint: `progress`, `identity`, and what only `load` understands."""
    verify(folder)
    try:
        document = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"checkpoint {folder}: {DOCUMENT} is damaged: {error}: {OLDER}") from error
    if not isinstance(document, dict) or not isinstance(document.get("identity"), dict):
        raise RunError(
            f"checkpoint {folder} is not one of this version of pefttool: no 'identity' in {DOCUMENT}: {OLDER}"
        )
    return document


def verify(folder: Path) -> None:
    """Raises RunError unless the folder is complete and every file has the hash that its manifest states."""
    if not (folder / COMPLETE).is_file():
        raise RunError(f"checkpoint {folder} is not complete: {OLDER}")
    try:
        if (folder / COMPLETE).read_text(encoding="ascii") != _hash(folder / MANIFEST):
            raise RunError(f"checkpoint {folder}: {MANIFEST} or {COMPLETE} is damaged: {OLDER}")
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            if "/" in name or "\\" in name or name in ("", ".", ".."):
                found = f"{MANIFEST} names {name!r}"
                raise RunError(f"checkpoint {folder}: {found}, expected a file of this folder: {OLDER}")
            if _hash(folder / name) != expected:
                raise RunError(f"checkpoint {folder}: {name} is damaged (its hash differs): {OLDER}")
        read = {DOCUMENT, STATE, f"{PARAMETERS}.safetensors", *(path.name for path in folder.glob("*.safetensors"))}
        if not read <= set(manifest):
            unnamed = min(read - set(manifest))
            raise RunError(f"checkpoint {folder}: {MANIFEST} states no hash of {unnamed}: {OLDER}")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"checkpoint {folder} is damaged: {' '.join(str(error).split())}: {OLDER}") from error


def newest(folder: Path) -> tuple[Path | None, tuple[str, ...]]:
    """The newest complete and verified checkpoint, and why each newer one was skipped."""
    skipped = []
    for path in _found(folder):
        try:
            verify(path)
        except RunError as error:
            skipped.append(str(error).removesuffix(f": {OLDER}"))
            continue
        return path, tuple(skipped)
    return None, tuple(skipped)


def _found(folder: Path) -> list[Path]:
    """Folders called `step-N`, the highest number first."""
    found = [p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=_step, reverse=True)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _complete(folder: Path) -> bool:
    try:
        verify(folder)
    except RunError:
        return False
    return True


def _tensors(folder: Path, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / f"{name}.safetensors"
    try:
        return load_file(path) if path.is_file() else {}
    except SafetensorError as error:
        raise RunError(f"checkpoint {folder}: {path.name} is no safetensors file ({error}): {OLDER}") from error


def _hash(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
