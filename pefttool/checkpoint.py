"""The whole training state on disk: safetensors and JSON, atomic, hashed, no pickle.

A checkpoint is a folder, written aside, fsynced, hashed in `manifest.json`, renamed into place, and marked with
`COMPLETE` last. What is not marked, or whose hashes differ, is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.batches import Position
from pefttool.errors import RunError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MANIFEST, COMPLETE = "manifest.json", "COMPLETE"


@dataclass(frozen=True)
class Best:
    """The best evaluation so far; `value` is None before the first."""

    step: int = 0
    value: float | None = None
    since: int = 0


@dataclass(frozen=True)
class Progress:
    """Where a run stands between two steps."""

    step: int
    position: Position
    best: Best


def flatten(state: Any, prefix: str = "", named: dict[int, str] | None = None) -> tuple[dict[str, Tensor], Any]:
    """A nested state (optimiser, scheduler, scaler) as named tensors and a JSON skeleton that refers to them.

    A tensor that occurs again (bitsandbytes' tables) is stored once; `named` are those met so far, by identity.
    """
    import torch

    named = {} if named is None else named
    if isinstance(state, torch.Tensor):
        if id(state) in named:
            return {}, {"$tensor": named[id(state)]}
        named[id(state)] = prefix
        return {prefix: state.detach().cpu().contiguous()}, {"$tensor": prefix}
    if isinstance(state, Mapping):
        tensors, pairs = {}, []
        for key, value in state.items():
            inner, skeleton = flatten(value, f"{prefix}/{key}", named)
            tensors.update(inner)
            pairs.append([key, skeleton])
        return tensors, {"$map": pairs}
    if isinstance(state, list | tuple):
        tensors, items = {}, []
        for i, value in enumerate(state):
            inner, skeleton = flatten(value, f"{prefix}/{i}", named)
            tensors.update(inner)
            items.append(skeleton)
        return tensors, {"$list": items}
    if state is None or isinstance(state, bool | int | float | str):
        return {}, state
    raise RunError(
        f"checkpoint: {prefix or 'state'} is a {type(state).__name__}, which cannot be stored without pickle"
    )


def unflatten(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `flatten`; tuples come back as lists."""
    if isinstance(skeleton, dict):
        if "$tensor" in skeleton:
            return tensors[skeleton["$tensor"]]
        if "$map" in skeleton:
            return {key: unflatten(value, tensors) for key, value in skeleton["$map"]}
        return [unflatten(value, tensors) for value in skeleton["$list"]]
    return skeleton


def save(
    folder: Path,
    progress: Progress,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    scaler: torch.amp.GradScaler,
) -> Path:
    """Write `folder/step-N`; returns it. Nothing of an unfinished write is ever taken for a checkpoint."""
    import torch
    from safetensors.torch import save_file

    state = {
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict(),
        "rng": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }
    tensors, skeleton = flatten(state)
    final = folder / f"step-{progress.step}"
    aside = folder / f".step-{progress.step}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in parameters.items()}, aside / "parameters.safetensors")
    save_file(tensors, aside / "state.safetensors")
    (aside / "state.json").write_text(json.dumps({"progress": asdict(progress), "state": skeleton}), encoding="utf-8")
    manifest = {file.name: _hash_and_sync(file) for file in sorted(aside.iterdir())}
    _write_synced(aside / MANIFEST, json.dumps(manifest, indent=1))
    _sync_folder(aside)
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    _sync_folder(folder)
    _write_synced(final / COMPLETE, "")
    _sync_folder(final)
    return final


def load(
    folder: Path,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    scaler: torch.amp.GradScaler,
) -> Progress:
    """Verify a checkpoint folder and put its state back in place. Raises RunError with the file that is wrong."""
    import torch
    from safetensors.torch import load_file

    verify(folder)
    stored = load_file(folder / "parameters.safetensors")
    if set(stored) != set(parameters):
        raise RunError(f"checkpoint {folder} holds other parameters than this run trains: resume with its own recipe")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])
    document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    state = unflatten(document["state"], load_file(folder / "state.safetensors"))
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    if scaler.is_enabled():
        scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["rng"]["cpu"])
    if state["rng"]["cuda"]:
        torch.cuda.set_rng_state_all(state["rng"]["cuda"])
    progress = document["progress"]
    return Progress(progress["step"], Position(**progress["position"]), Best(**progress["best"]))


def verify(folder: Path) -> None:
    """Raises RunError unless the folder is complete and every file has the hash that its manifest states."""
    if not (folder / COMPLETE).is_file():
        raise RunError(f"checkpoint {folder} is not complete: use an older one")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
                raise RunError(f"checkpoint {folder}: {name} is damaged (its hash differs): use an older one")
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"checkpoint {folder} is damaged: {' '.join(str(error).split())}: use an older one") from error


def newest(folder: Path) -> tuple[Path | None, tuple[str, ...]]:
    """The newest complete and verified checkpoint, and why each newer one was skipped."""
    skipped = []
    found = [p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit()]
    for path in sorted(found, key=lambda p: -int(p.name.removeprefix("step-"))):
        try:
            verify(path)
        except RunError as error:
            skipped.append(str(error))
            continue
        return path, tuple(skipped)
    return None, tuple(skipped)


def _hash_and_sync(file: Path) -> str:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _write_synced(file: Path, text: str) -> None:
    with file.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
