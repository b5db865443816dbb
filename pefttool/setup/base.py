"""Stage 4: Plan + labels -> the pretrained model and its processor, quantised if asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import ModelError
from pefttool.api.facts import Facts
from pefttool.api.values import Setting
from pefttool.models import facts, hub, prequantized, vocabulary
from pefttool.models.pretrained import LocalPretrained
from pefttool.setup import streamed_base
from pefttool.setup.loading import LoadedModel, Loading
from pefttool.setup.plan import Plan, decided
from pefttool.setup.precision import compute_in_float32, torch_dtype
from pefttool.toolkit.model_parts import transformers_part

if TYPE_CHECKING:
    import torch
    from torch import nn


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
    choice, streams = plan.choice, plan.recipe.memory.stream
    loading = Loading.of(plan, local.path, setting)
    found = _streamed(loading, plan.tables_on_host) if streams else load_model(loading)
    model = found.model
    if plan.tables_on_host:
        from pefttool.nn import embedding_offload

        embedding_offload.install(model)
    known = facts.inspect(
        model,
        plan.task,
        labels=labels,
        quantizer=plan.facts.quantizer,
        dtype=choice.dtype,
        device=choice.device,
        world_size=plan.facts.world_size,
        **decided(plan.recipe),
    )
    return Base(model, found.processor, setting, known, local, found.missing, found.notices)


def _streamed(loading: Loading, tables_on_host: bool) -> LoadedModel:
    notices: tuple[str, ...] = ()

    def resident() -> LoadedModel:
        nonlocal notices
        found = load_model(replace(loading, device="cpu", facts=replace(loading.facts, device="cpu")))
        notices = found.notices
        return found

    found, _ = streamed_base.load(loading, resident, tables_on_host)
    return replace(found, notices=notices)


def load_model(loading: Loading) -> LoadedModel:
    """Load it. Raises ModelError where the folder's weights have other shapes than its config.json says."""
    import torch

    task, quantization, dtype = loading.task, loading.quantization, torch_dtype(loading.dtype)
    arguments: dict[str, Any] = {"dtype": dtype}
    if quantization is not None:
        arguments.update(quantization.load_arguments(loading.facts))
    torch.manual_seed(loading.setting.seed)
    source = LocalPretrained(loading.path, arguments, trusted=loading.trusted)
    loaded = task.load(source, loading.setting)
    model = loaded.model
    if quantization is not None:
        quantization.after_load(model)
        if quantization.stored_already:
            _cast(model, dtype)
    else:
        model.to(loading.device)
    vocabulary.guard(model, loaded.processor)
    heads = task.head_modules(model)
    for name in heads:
        compute_in_float32(model.get_submodule(name).to(device=loading.device, dtype=torch.float32))
    model.eval()
    new = tuple(f"{name}." for name in heads)
    misfits = [n for n in _whole(model, source.misfits) if not (new and n.startswith(new))]
    if misfits:
        raise ModelError(
            f"model {loading.path}: {misfits[0]!r} has another shape than its config.json says; restore its files"
        )
    missing = tuple(n for n in _whole(model, source.missing) if not (new and n.startswith(new)))
    return LoadedModel(model, loaded.processor, missing, source.notices)


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
