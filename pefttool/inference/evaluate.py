"""Held-out loss and metrics of a model: one forward pass a batch, no gradients, no effect on the model or the RNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import DataError, RunError
from pefttool.api.task import Task
from pefttool.api.values import Row, Setting
from pefttool.data.batches import collate, loss_of, to_device
from pefttool.inference.out_of_memory import halves, out_of_memory, release
from pefttool.setup.precision import autocast
from pefttool.setup.random_state import forked

if TYPE_CHECKING:
    from torch import nn

    from pefttool.setup.devices import Choice


@contextmanager
def inference(model: nn.Module, choice: Choice) -> Iterator[None]:
    """Eval mode, no gradients, the run's precision; module modes and random state are as before afterwards."""
    import torch

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with forked(choice.device), torch.no_grad(), autocast(choice):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def typed(turns: Sequence[Mapping[str, str]]) -> Row:
    """What somebody typed: a chat task reads the conversation, a task that continues text reads the last line."""
    return Row({"messages": list(turns), "text": turns[-1]["content"]})


def talks(task: Task, options: Any) -> bool:
    """Whether `pefttool chat` can be had with it: it generates, and what somebody types is a row that it takes."""
    return task.generative and not task.check_input(typed([{"role": "user", "content": "hello"}]).values, options)


def text_alone(text: str, options: Any) -> Row:
    """A row that is one text, in the column that the task reads texts from: `pefttool predict --text`."""
    return Row({getattr(options, "text_column", None) or "text": text})


def takes_text(task: Task, options: Any) -> bool:
    """Whether `pefttool predict --text` can be had with it: a text alone is a row that it takes."""
    return not task.check_input(text_alone("hello", options).values, options)


def evaluate(
    model: nn.Module,
    task: Task,
    examples: Sequence[Any],
    rows: Sequence[Row],
    batches: Sequence[Sequence[int]],
    processor: Any,
    setting: Setting,
    choice: Choice,
    smaller: Callable[[str], object] | None = None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(metrics, predictions in the rows' order). The loss is the mean over all units of all rows.

    With `smaller`, a batch that does not fit in memory is halved, and all that follow; it is told so.
    """
    loss, predictions = forward(model, task, examples, batches, processor, setting, choice, smaller)
    if task.judged_by_answers:
        predictions = answers(model, task, rows, batches, processor, setting, choice)
    return task.metrics(predictions, rows, loss, setting), predictions


def forward(
    model: nn.Module,
    task: Task,
    examples: Sequence[Any],
    batches: Sequence[Sequence[int]],
    processor: Any,
    setting: Setting,
    choice: Choice,
    smaller: Callable[[str], object] | None = None,
) -> tuple[float, list[dict[str, Any]]]:
    """(mean loss, predictions by example: empty if the task decodes none) of these batches of `examples`."""
    total = weight = 0.0
    predictions: list[dict[str, Any]] = [{} for _ in examples]
    decoded = False
    waiting = [list(batch) for batch in reversed(batches)]

    def one(batch: Sequence[int]) -> tuple[float, float, list[dict[str, Any]] | None]:
        tensors = collate([examples[i] for i in batch], task, processor, setting)
        loss = loss_of(task, model, to_device(tensors, choice.device), setting)
        found = None if loss.outputs is None else task.decode(loss.outputs, setting)
        return float(loss.sum), float(loss.weight), found

    with inference(model, choice):
        while waiting:
            batch = waiting.pop()
            try:
                summed, units, found = one(batch)
            except (RuntimeError, MemoryError) as error:
                if smaller is None or not out_of_memory(error):
                    raise
            else:
                total, weight = total + summed, weight + units
                if found is not None:
                    decoded = True
                    for i, prediction in zip(batch, found, strict=True):
                        predictions[i] = prediction
                continue
            release(choice.device)
            lengths = [int(example["length"]) for example in examples]
            if len(batch) < 2:
                message = f"memory ran out in evaluation with one row of {lengths[batch[0]]} tokens"
                raise RunError(f"{message}: lower train.sequence_length ({setting.sequence_length})")
            waiting = [half for later in (*waiting, batch) for half in reversed(halves(later, lengths))]
            smaller(f"memory ran out in evaluation: its batches are halved, to {len(waiting[-1])} rows at a time")
    return total / weight, predictions if decoded else []


def answers(
    model: nn.Module,
    task: Task,
    rows: Sequence[Row],
    batches: Sequence[Sequence[int]],
    processor: Any,
    setting: Setting,
    choice: Choice,
) -> list[dict[str, Any]]:
    """The task's answers to all rows, in their order, a batch at a time."""
    found: list[dict[str, Any]] = [{} for _ in rows]
    for batch in batches:
        given = predict(model, task, [rows[i] for i in batch], processor, setting, choice)
        for i, answer in zip(batch, given, strict=True):
            found[i] = answer
    return found


def predict(
    model: nn.Module, task: Task, rows: Sequence[Row], processor: Any, setting: Setting, choice: Choice
) -> list[dict[str, Any]]:
    """The task's answers to these rows (one batch). Where they are drawn at random, the run's seed decides: training,
    `eval` and `predict` draw the same."""
    import torch

    with inference(model, choice):
        torch.manual_seed(setting.seed)
        return task.predict(model, rows, processor, setting)


def require_numbers(answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> None:
    """Raise DataError, with the row's place, for the first answer that holds a number which is none (NaN, infinity)."""
    for answer, row in zip(answers, rows, strict=True):
        name = _no_number(answer)
        if name is not None:
            raise DataError(
                f"{row.place}: {name!r} of the answer is no finite number: the row's values may be too far from those"
                " of the training rows: mend or remove it, or try --dtype float32"
            )


def _no_number(value: Any, name: str = "value") -> str | None:
    """What the first number that is none is called."""
    if isinstance(value, float):
        return None if math.isfinite(value) else name
    inside: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping):
        inside = ((str(key), inner) for key, inner in value.items())
    elif isinstance(value, list | tuple):
        inside = ((name, inner) for inner in value)
    return next((found for key, inner in inside if (found := _no_number(inner, key)) is not None), None)
