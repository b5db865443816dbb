"""Stage 4: Plan + labels -> the pretrained model and its processor, quantised if asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pefttool import facts, hub, streamed_base
from pefttool.errors import ModelError
from pefttool.interfaces import Quantizer, Task
from pefttool.plan import Plan, decided
from pefttool.precision import compute_in_float32, torch_dtype
from pefttool.pretrained import LocalPretrained
from pefttool.values import Facts, Setting

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


@dataclass(frozen=True)
class Base:
    """The pretrained model on its device, not yet adapted; a new task head is already there, in float32.

    `missing` are weights that the model folder lacks, besides the head's: they are random.
    """

    model: nn.Module
    processor: Any
    setting: Setting
    facts: Facts
    local: hub.LocalModel
    missing: tuple[str, ...] = ()


def load(plan: Plan, labels: tuple[str, ...], progress: Any = None, fitted: Mapping[str, Any] | None = None) -> Base:
    """Fetch the weights if need be, and load them. New heads draw from the run's seed."""
    local = hub.resolve(plan.model.reference, plan.registry, weights=True, progress=progress)
    setting = plan.setting(labels, fitted)
    model, processor, missing = (_streamed if plan.recipe.memory.stream else _resident)(plan, local.path, setting)
    if plan.tables_on_host:
        from pefttool import host_tables

        host_tables.install(model)
    known = facts.inspect(
        model,
        plan.task,
        labels=labels,
        quantizer=plan.facts.quantizer,
        dtype=plan.choice.dtype,
        device=plan.choice.device,
        world_size=plan.facts.world_size,
        **decided(plan.recipe),
    )
    return Base(model, processor, setting, known, local, missing)


def _resident(plan: Plan, path: Path, setting: Setting) -> tuple[nn.Module, Any, tuple[str, ...]]:
    choice = plan.choice
    return load_model(path, plan.task, setting, plan.quantizer, plan.facts, choice.device, choice.dtype, plan.trusted)


def _streamed(plan: Plan, path: Path, setting: Setting) -> tuple[nn.Module, Any, tuple[str, ...]]:
    assert plan.quantizer is not None
    on_host, dtype = replace(plan.facts, device="cpu"), plan.choice.dtype

    def resident() -> tuple[nn.Module, tuple[str, ...]]:
        model, _, missing = load_model(path, plan.task, setting, plan.quantizer, on_host, "cpu", dtype)
        return model, missing

    return streamed_base.load(
        path, plan.task, setting, plan.quantizer, plan.facts, plan.choice.device, dtype, resident, plan.tables_on_host
    )[:3]


def load_model(
    path: Path,
    task: Task,
    setting: Setting,
    quantizer: Quantizer | None,
    known: Facts,
    device: str,
    dtype: str,
    trusted: bool = False,
) -> tuple[nn.Module, Any, tuple[str, ...]]:
    """(model, processor, missing) from a folder, on `device`, its frozen weights in `dtype`; heads are, and compute in,
    float32.

    `missing` are weights outside the new heads that the folder does not have, so that they are random.
    """
    import torch

    arguments: dict[str, Any] = {"dtype": torch_dtype(dtype)}
    if quantizer is not None:
        arguments.update(quantizer.load_arguments(quantizer.Options(), known))
    torch.manual_seed(setting.seed)
    source = LocalPretrained(path, arguments, trusted=trusted)
    loaded = task.load(source, setting)
    model = loaded.model
    if quantizer is not None:
        quantizer.after_load(model, quantizer.Options())
    else:
        model.to(device)
    heads = task.head_modules(model)
    for name in heads:
        compute_in_float32(model.get_submodule(name).to(device=device, dtype=torch.float32))
    model.eval()
    new = tuple(f"{name}." for name in heads)
    misfits = [n for n in source.misfits if not (new and n.startswith(new))]
    if misfits:
        raise ModelError(f"model {path}: {misfits[0]!r} has another shape than its config.json says; restore its files")
    return model, loaded.processor, tuple(n for n in source.missing if not (new and n.startswith(new)))
