"""Held-out loss and metrics of a model: one forward pass a batch, no gradients, no effect on the model or the RNG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from pefttool.batches import collate, loss_of, to_device
from pefttool.interfaces import Task
from pefttool.precision import autocast
from pefttool.values import Row, Setting

if TYPE_CHECKING:
    from torch import nn

    from pefttool.devices import Choice


@contextmanager
def inference(model: nn.Module, choice: Choice) -> Iterator[None]:
    """Eval mode, no gradients, the run's precision; module modes and random state are as before afterwards."""
    import torch

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with fork_rng(choice), torch.no_grad(), autocast(choice):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def fork_rng(choice: Choice) -> AbstractContextManager[None]:
    """Whatever draws within, the random state is as before afterwards."""
    import torch

    device = torch.device(choice.device)
    forked: AbstractContextManager[None] = torch.random.fork_rng([device.index or 0] if device.type == "cuda" else [])
    return forked


def evaluate(
    model: nn.Module,
    task: Task,
    examples: Sequence[Any],
    rows: Sequence[Row],
    batches: Sequence[Sequence[int]],
    processor: Any,
    setting: Setting,
    choice: Choice,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(metrics, predictions in the rows' order). The loss is the mean over all units of all rows."""
    import torch

    total = torch.zeros((), dtype=torch.float64)
    weight = 0.0
    predictions: list[dict[str, Any]] = [{} for _ in rows]
    decoded = False
    with inference(model, choice):
        for batch in batches:
            tensors = collate([examples[i] for i in batch], task, processor, setting)
            loss = loss_of(task, model, to_device(tensors, choice.device), setting)
            total += loss.sum.double().cpu()
            weight += float(loss.weight)
            if loss.outputs is not None:
                decoded = True
                for i, prediction in zip(batch, task.decode(loss.outputs, setting), strict=True):
                    predictions[i] = prediction
    predictions = predictions if decoded else []
    return task.metrics(predictions, rows, float(total) / weight, setting), predictions


def predict(
    model: nn.Module, task: Task, rows: Sequence[Row], processor: Any, setting: Setting, choice: Choice
) -> list[dict[str, Any]]:
    """The task's answers to these rows (one batch)."""
    with inference(model, choice):
        return task.predict(model, rows, processor, setting)
