"""One optimiser step of a real model, and what the profiler saw PyTorch's allocator do meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from allocations import peak_bytes

from pefttool.api.values import Row
from pefttool.config import recipe
from pefttool.config.registry import Registry
from pefttool.data.encoding import Encoded
from pefttool.forecast import simulate
from pefttool.inference import frozen, packing
from pefttool.inference.predictor import Predictor
from pefttool.setup import attach, base, plan, techniques
from pefttool.setup.precision import autocast, grad_scaler
from pefttool.training.optimisation import Update, make_optimizer, optimizer_step


def planned(registry: Registry, adapter: str, task: str, *overrides: str) -> plan.Plan:
    document = recipe.combine({}, {"adapter.name": adapter, "task.name": task}, overrides)
    return plan.make(recipe.resolve(document, registry), registry)


def measured(chosen: plan.Plan, labels: tuple[str, ...], rows: int, tokens: int) -> int:
    """Bytes: what lasts (weights, adapter, optimiser), by its storages, and the profiler's peak of the second step.

    The step's gradients are part of the profiler's share: they are made anew in every step.
    """
    loaded = base.load(chosen, labels)
    examples = simulate.filler(chosen, loaded.setting, rows, tokens)
    data = Encoded(tuple(examples), tuple(Row({}) for _ in examples), ())
    loaded = packing.settle(chosen, loaded, loaded.model, data, lambda notice: None)
    adapted = attach.attach(loaded.model, chosen.adapter, chosen.recipe.adapter_options, loaded.facts)
    techniques.apply(chosen, adapted)
    optimizer = make_optimizer(adapted, chosen.adapter, chosen.recipe.train)
    predictor = Predictor.of(chosen, loaded, adapted.model)
    batch = predictor.batch(examples)

    still = frozen.find(chosen, loaded, adapted, data).eval_modules

    def step() -> object:
        adapted.model.train()
        for module in still:
            module.eval()
        parameters = list(adapted.parameters().values())
        update = Update(optimizer, grad_scaler(chosen.choice), parameters, chosen.recipe.train.max_grad_norm)
        weight = float(sum(example["weight"] for example in examples))
        return optimizer_step(predictor, update, [(batch, True)], weight)

    def step_and_evaluation() -> None:
        step()
        with torch.no_grad(), autocast(chosen.choice):
            chosen.task.loss(adapted.model.eval(), batch, loaded.setting)

    step()
    model = [*adapted.model.parameters(), *adapted.model.buffers()]
    if chosen.base_is_mapped:
        model = list(adapted.parameters().values())
    lasting = storages([*model, *_states(optimizer), *_tensors(batch)])
    return lasting + peak_bytes(step_and_evaluation)


def _states(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]


def _tensors(batch: Mapping[str, Any]) -> list[torch.Tensor]:
    return [value for value in batch.values() if isinstance(value, torch.Tensor)]


def storages(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of the distinct storages of these tensors; a quantised weight brings its scales and tables."""
    found: dict[int, int] = {}

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            add(getattr(value, "quant_state", None))
            add(getattr(value, "CB", None))
            add(getattr(value, "SCB", None))
        elif value is not None and type(value).__name__ == "QuantState":
            for part in vars(value).values():
                add(part)

    for tensor in tensors:
        add(tensor)
    return sum(found.values())
