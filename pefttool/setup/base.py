"""Stage 4: Plan + labels -> the pretrained model and its processor, quantised if asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import ModelError
from pefttool.api.facts import Facts
from pefttool.api.task import Task
from pefttool.api.values import Setting
from pefttool.models import facts, hub, prequantized, vocabulary
from pefttool.models.pretrained import LocalPretrained
from pefttool.models.quantization import Quantization
from pefttool.setup import streamed_base
from pefttool.setup.plan import Plan, decided
from pefttool.setup.precision import compute_in_float32, torch_dtype
from pefttool.toolkit.model_parts import transformers_part

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn


#: (model, processor, missing, notices)
Read = tuple["nn.Module", Any, tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Base:
    """The pretrained model on its device, not yet adapted; a new task head is already there, in float32.

    `missing` are weights that the model folder lacks, besides the head's: they are random (missing.py settles that).
    `notices` are what the user should know of how it was loaded.
    """

    model: nn.Module
    processor: Any
    setting: Setting
    facts: Facts
    local: hub.LocalModel
    missing: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def load(plan: Plan, labels: tuple[str, ...], progress: Any = None, fitted: Mapping[str, Any] | None = None) -> Base:
    """Fetch the weights if need be, and load them. New heads draw from the run's seed."""
    local = hub.resolve(plan.model.reference, plan.registry, weights=True, progress=progress)
    if plan.quantization is not None and plan.quantization.stored_already:  # the files, now there, say it exactly
        quantizers = plan.registry.quantizers.values()
        exact = prequantized.quantization(local.path, local.id, plan.quantization, quantizers)
        plan = replace(plan, quantization=exact)
    setting = plan.setting(labels, fitted)
    found = (_streamed if plan.recipe.memory.stream else _resident)(plan, local.path, setting)
    model, processor, missing, notices = found
    if plan.tables_on_host:
        from pefttool.nn import embedding_offload

        embedding_offload.install(model)
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
    return Base(model, processor, setting, known, local, missing, notices)


def _resident(plan: Plan, path: Path, setting: Setting) -> Read:
    choice = plan.choice
    return _read(path, plan.task, setting, plan.quantization, plan.facts, choice.device, choice.dtype, plan.trusted)


def _streamed(plan: Plan, path: Path, setting: Setting) -> Read:
    assert plan.quantization is not None
    on_host, dtype = replace(plan.facts, device="cpu"), plan.choice.dtype

    notices: tuple[str, ...] = ()

    def resident() -> tuple[nn.Module, tuple[str, ...]]:
        nonlocal notices
        model, _, missing, notices = _read(path, plan.task, setting, plan.quantization, on_host, "cpu", dtype)
        return model, missing

    how, device = plan.quantization, plan.choice.device
    model, processor, missing, _ = streamed_base.load(
        path, plan.task, setting, how, plan.facts, device, dtype, resident, plan.tables_on_host
    )
    return model, processor, missing, notices


def load_model(
    path: Path,
    task: Task,
    setting: Setting,
    quantization: Quantization | None,
    known: Facts,
    device: str,
    dtype: str,
    trusted: bool = False,
) -> tuple[nn.Module, Any, tuple[str, ...]]:
    """(model, processor, missing) from a folder, on `device`, its frozen weights in `dtype`; heads are, and compute in,
    float32.

    `missing` are weights outside the new heads that the folder does not have, so that they are random.
    """
    return _read(path, task, setting, quantization, known, device, dtype, trusted)[:3]


def _read(
    path: Path,
    task: Task,
    setting: Setting,
    quantization: Quantization | None,
    known: Facts,
    device: str,
    dtype: str,
    trusted: bool = False,
) -> Read:
    """`load_model`, and what the user should know of it."""
    import torch

    arguments: dict[str, Any] = {"dtype": torch_dtype(dtype)}
    if quantization is not None:
        arguments.update(quantization.load_arguments(known))
    torch.manual_seed(setting.seed)
    source = LocalPretrained(path, arguments, trusted=trusted)
    loaded = task.load(source, setting)
    model = loaded.model
    if quantization is not None:
        quantization.after_load(model)
        if quantization.stored_already:
            _cast(model, torch_dtype(dtype))
    else:
        model.to(device)
    vocabulary.guard(model, loaded.processor)
    heads = task.head_modules(model)
    for name in heads:
        compute_in_float32(model.get_submodule(name).to(device=device, dtype=torch.float32))
    model.eval()
    new = tuple(f"{name}." for name in heads)
    misfits = [n for n in _whole(model, source.misfits) if not (new and n.startswith(new))]
    if misfits:
        raise ModelError(f"model {path}: {misfits[0]!r} has another shape than its config.json says; restore its files")
    missing = tuple(n for n in _whole(model, source.missing) if not (new and n.startswith(new)))
    return model, loaded.processor, missing, source.notices


def _whole(model: nn.Module, names: Iterable[str]) -> Iterator[str]:
    """Names of the transformers model inside, as the whole model has them."""
    part = transformers_part(model)
    prefix = next((f"{name}." for name, module in model.named_modules() if module is part and name), "")
    yield from (f"{prefix}{name}" for name in names)


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Weights that are not quantised, in the run's dtype: of a folder that holds quantised ones, transformers leaves
    them as they were saved."""
    kept = tuple(getattr(transformers_part(model), "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not set(kept) & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
