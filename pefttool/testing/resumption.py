"""A run that is resumed ends as the undisturbed one does, bit for bit: any recipe, on the tiny models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pefttool.config import recipe
from pefttool.config.registry import Registry
from pefttool.runs import resuming, run_folder
from pefttool.runs.checkpoint import MANIFEST
from pefttool.testing.bench import require

#: What of `metrics.json` depends on the machine, and not on the training.
MACHINE = ("memory",)


def check_resume(registry: Registry, given: Mapping[str, Any], folder: Path, at: int, what: str) -> None:
    """Train as `given` says with a checkpoint at every step, then once more from the one after step `at`.

    The adapter's files, the metrics, the answers and the whole state after the last step must be the same to the bit.
    Raises ContractViolation; Refused where the plan refuses.
    """
    from pefttool import run

    whole, again = folder / "whole", folder / "again"
    train = {**given.get("train", {}), "checkpoint_every": 1, "keep_checkpoints": 10**6, "rehearse": False}
    document = {**given, "train": train, "out": str(whole)}
    run.run(recipe.resolve(document, registry), registry)
    interrupt(whole, again, at)
    found, resolved = resuming.find(again, registry)
    require(found.checkpoint.name == f"step-{at}", what, f"would be resumed from {found.checkpoint}")
    run.run(resolved, registry, resume=found)
    for path in sorted((whole / run_folder.ADAPTER).rglob("*")):
        other = again / run_folder.ADAPTER / path.relative_to(whole / run_folder.ADAPTER)
        same = path.is_dir() or (other.is_file() and path.read_bytes() == other.read_bytes())
        require(same, what, f"resumed after step {at} it saves another {path.name}")
    metrics = [json.loads((f / run_folder.METRICS).read_text(encoding="utf-8")) for f in (whole, again)]
    told = [{key: value for key, value in found.items() if key not in MACHINE} for found in metrics]
    require(told[0] == told[1], what, f"resumed after step {at} it finds {told[1]}, and undisturbed {told[0]}")
    last = f"step-{told[0]['steps']}"
    ends = [(f / run_folder.CHECKPOINTS / last / MANIFEST).read_text(encoding="utf-8") for f in (whole, again)]
    require(ends[0] == ends[1], what, f"resumed after step {at} its state after {last} is another")


def interrupt(whole: Path, folder: Path, at: int) -> None:
    """A copy of a finished run's folder, as it was after step `at`."""
    folder.mkdir()
    for name in (run_folder.RECIPE, run_folder.PLAN, run_folder.ENVIRONMENT, run_folder.EVENTS):
        shutil.copy(whole / name, folder)
    step = f"step-{at}"
    shutil.copytree(whole / run_folder.CHECKPOINTS / step, folder / run_folder.CHECKPOINTS / step)
