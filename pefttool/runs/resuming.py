"""What a run depends on besides its own checkpoint: written into every one, and compared before a run goes on."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pefttool.api.errors import Refused, UsageError
from pefttool.config import recipe as recipes
from pefttool.config import recipe_file
from pefttool.config.recipe import Recipe
from pefttool.config.registry import Registry
from pefttool.config.validation import short
from pefttool.data.corpus import Corpus
from pefttool.files import fingerprint
from pefttool.runs import artefacts, checkpoint, progress, run_folder, run_paths
from pefttool.setup.plan import Plan

ABSENT = object()


@dataclass(frozen=True)
class Resume:
    """A run to go on with: where, from which checkpoint, and what its own identity was."""

    folder: Path
    checkpoint: Path
    skipped: tuple[str, ...] = ()
    allow_changed: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)
    alarm: str | None = None


def find(folder: Path, registry: Registry, allow_changed: bool = False) -> tuple[Resume, Recipe]:
    """The run of this folder and its recipe. Raises UsageError or Refused where it cannot be gone on with."""
    newest, skipped = run_folder.to_resume(folder)
    document = checkpoint.read(newest)
    resolved = _recipe(folder, registry)
    alarm = progress.watched(document).alarm
    identity = _with_options(document["identity"], resolved)
    return Resume(folder, newest, skipped, allow_changed, identity, alarm), resolved


def _with_options(identity: Mapping[str, Any], resolved: Recipe) -> Mapping[str, Any]:
    """The identity of a run. One of the time when recipes named a quantizer alone gets the defaults of its options.

    Where the recipe still names it alone, `check` takes the options of now: they are the same defaults, and those of a
    base that is stored in fewer bits already are known then.
    """
    before, options = _quantizer(identity), resolved.quantize_options
    if before is None or before != resolved.quantize or options is None or not options.model_fields_set:
        return identity
    defaults = type(options)().model_dump(mode="json")
    return {**identity, "recipe": {**identity["recipe"], "quantize": {"name": before, **defaults}}}


def _quantizer(identity: Mapping[str, Any]) -> str | None:
    """The quantizer that was noted down by its name alone, or None."""
    document = identity.get("recipe")
    found = document.get("quantize") if isinstance(document, Mapping) else None
    return found if isinstance(found, str) else None


def unchecked(folder: Path, registry: Registry) -> Recipe | None:
    """The recipe of a finished run that ends with a check which has not been made; None where there is none to make."""
    waits = (folder / run_folder.WITNESS).is_file()
    if not run_folder.is_finished(folder) or ((folder / run_folder.CHECK).is_file() and not waits):
        return None
    try:
        resolved = _recipe(folder, registry)
    except (UsageError, Refused):
        return None  # whoever goes on with the run is told
    return resolved if resolved.check == "process" or (waits and resolved.check == "files") else None


def _recipe(folder: Path, registry: Registry) -> Recipe:
    path = folder / run_folder.RECIPE
    return recipes.resolve(run_paths.followed(recipe_file.read(path), path), registry)


def require_newest(resume: Resume) -> None:
    """Once the folder is locked: raises UsageError where another command went on with the run since it was found."""
    newest, _ = run_folder.to_resume(resume.folder)
    if newest != resume.checkpoint:
        raise UsageError(f"{resume.folder} has gone on meanwhile, to {newest.name}: give the command again")


def identity(plan: Plan, rows: Corpus, processes: int, skip_bad_rows: bool) -> dict[str, Any]:
    """Everything that decides on a run's numbers, as plain values."""
    import torch

    registry, quantization = plan.registry, plan.quantization
    owners = {
        plan.adapter.name: registry.adapters.owner(plan.adapter.name),
        plan.task.name: registry.tasks.owner(plan.task.name),
        **({quantization.name: registry.quantizers.owner(quantization.name)} if quantization else {}),
    }
    return {
        "recipe": run_paths.without(plan.recipe.as_document()),
        "data": rows.sha256,
        **_contents(plan, rows),
        "base": fingerprint.weight_files(plan.model.path),
        "base_files": fingerprint.processor_files(plan.model.path),
        "python": platform.python_version(),
        "packages": {name: artefacts.package_version(name) for name in artefacts.PACKAGES},
        "plugins": {name: f"{owner.distribution} {owner.version}" for name, owner in owners.items()},
        "device": plan.choice.device,
        "dtype": plan.choice.dtype,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "skip_bad_rows": skip_bad_rows,
    }


def _contents(plan: Plan, rows: Corpus) -> dict[str, str]:
    """Hashes of the rows, in their order, and of the files that they name; nothing where they have no lasting form."""
    both = (*rows.train, *rows.eval)
    try:
        files = (path for row in both for path in plan.task.files(row.values, rows.options))
        return {"rows": fingerprint.rows(both), "files": fingerprint.files(files)}
    except fingerprint.Unknowable:
        return {}


def check(resume: Resume, now: Mapping[str, Any]) -> list[str]:
    """What differs from when the checkpoint was written, and what was wrong then, a line each, where the user allows.

    Raises Refused with every difference where not: the run would not end where it would have ended.
    """
    found = [f"it ended with: {resume.alarm}"] if resume.alarm else []
    before, after = _quantizer(resume.identity), now.get("recipe", {}).get("quantize")
    identity = resume.identity
    if before is not None and isinstance(after, Mapping) and after["name"] == before:
        identity = {**identity, "recipe": {**identity["recipe"], "quantize": after}}
    found += [f"{key}: {_say(then)} then, {_say(value)} now" for key, then, value in differences(identity, now)]
    if found and not resume.allow_changed:
        raise Refused([*found, f"{resume.folder} would not go on as it began: undo that, or add --allow-changed"])
    return found


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value then, value now) of each key whose value is another; ABSENT where there is none."""
    for key in dict.fromkeys((*then, *now)):
        old, new = then.get(key, ABSENT), now.get(key, ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new


def _say(value: Any) -> str:
    return "nothing" if value is ABSENT else value[:12] if _is_hash(value) else short(value)


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
