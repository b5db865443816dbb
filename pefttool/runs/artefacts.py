"""Stage 8: the run folder. Everything a run leaves behind is written here, and by rank 0 only."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pefttool.api.errors import RunError, UsageError
from pefttool.files import durable, strict_json
from pefttool.runs import run_folder, run_paths, saved_files
from pefttool.runs.adapter_facts import ADAPTER_FACTS, adapter_facts
from pefttool.runs.run_folder import ADAPTER, ENVIRONMENT, METRICS, PLAN, RECIPE
from pefttool.setup.attach import Adapted
from pefttool.setup.base import Base
from pefttool.setup.plan import Plan
from pefttool.toolkit import peft_folder

PACKAGES = (
    "pefttool",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "safetensors",
    "tokenizers",
)


def choose_folder(plan: Plan, parent: Path = Path("runs")) -> Path:
    """The folder that the user named, or the next free `runs/ADAPTER-TASK-NNN`. Raises UsageError if it is in use."""
    if plan.recipe.out is not None:
        folder = Path(plan.recipe.out)
        run_folder.may_start(folder)
        return folder
    number = 1
    while (folder := parent / f"{plan.adapter.name}-{plan.task.name}-{number:03d}").exists():
        number += 1
    return folder


def open_folder(folder: Path, plan: Plan, world_size: int) -> bool:
    """Write what is known before training into a locked folder; whether an unfinished run had to go from it first.

    Raises UsageError if it cannot be written, or has become another run's.
    """
    run_folder.may_start(folder)
    try:
        cleared = run_folder.clear(folder)
        durable.replace(folder / RECIPE, plan.recipe.as_yaml().encode())
        write_json(folder / PLAN, plan.as_json())
        write_json(folder / ENVIRONMENT, environment(plan, world_size) | run_paths.here(folder))
    except OSError as error:
        raise UsageError(f"out: {folder} cannot be written: {error.strerror}; choose another --out") from error
    return cleared


def environment(plan: Plan, world_size: int) -> dict[str, Any]:
    """What a result may depend on besides the recipe."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",  # `platform()` starts `uname`
        "packages": {name: package_version(name) for name in PACKAGES},
        "plugins": {p.name: p.owner for p in plan.registry.plugins.loaded},
        "device": plan.choice.device,
        "dtype": plan.choice.dtype,
        "reason": plan.choice.reason,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "world_size": world_size,
    }


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def save_adapter(folder: Path, plan: Plan, base: Base, adapted: Adapted) -> Path:
    """Write `folder/adapter`: the adapter's own files, the task head, running statistics, and how to load all of it.

    Raises RunError where the disk fails.
    """
    from safetensors import SafetensorError

    try:
        return _save_adapter(folder, plan, base, adapted)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"{folder / ADAPTER} cannot be written ({reason}): make room, then {run_folder.way_on(folder)}"
        ) from error


def _save_adapter(folder: Path, plan: Plan, base: Base, adapted: Adapted) -> Path:
    target = folder / ADAPTER
    aside = folder / f".{ADAPTER}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    plan.adapter.save(adapted.model, aside)
    tensors = saved_files.beside_the_adapter(aside, adapted, base.facts.head_modules)
    if tensors:
        peft_folder.write_head(aside, tensors, base.facts.head_modules)
    write_json(aside / ADAPTER_FACTS, adapter_facts(plan, base))
    save_processor(base.processor, aside)
    durable.publish(aside, target)
    return target


def save_processor(processor: Any, folder: Path) -> None:
    """Write the processor. Tokenizers keep how they were last called, which depends on what a cache held: not that."""
    backend = getattr(processor, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    processor.save_pretrained(folder)


def write_metrics(
    folder: Path,
    before: Mapping[str, float],
    after: Mapping[str, float],
    samples: Sequence[Mapping[str, Any]],
    unfinished: Mapping[str, str],
    **facts: Any,
) -> None:
    """What the run brought; with this file it is finished, unless something is `unfinished`.

    Raises RunError where the disk fails.
    """
    document = {"before": dict(before), "after": dict(after), "samples": list(samples), **facts}
    try:
        write_json(folder / METRICS, document | ({run_folder.UNFINISHED: dict(unfinished)} if unfinished else {}))
    except OSError as error:
        raise RunError(
            f"{folder / METRICS} cannot be written ({error.strerror}): make room, then {run_folder.way_on(folder)}"
        ) from error


def write_json(path: Path, document: Any) -> None:
    """A whole file, or the one that was there. Raises OSError."""
    durable.replace(path, (strict_json.dumps(document, indent=1) + "\n").encode())
