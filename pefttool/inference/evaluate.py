"""Held-out loss and metrics of a model: one forward pass a batch, no gradients, no effect on the model or the RNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pefttool.api.errors import DataError
from pefttool.api.values import Row
from pefttool.data.encoding import Encoded
from pefttool.inference.out_of_memory import in_batches
from pefttool.inference.predictor import Predictor


def evaluate(
    predictor: Predictor,
    data: Encoded,
    batches: Sequence[Sequence[int]],
    smaller: Callable[[str], object] | None = None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(metrics, predictions in the order of the rows). The loss is the mean over all units of all rows.

    With `smaller`, a batch that does not fit in memory is halved, as are all that follow; `smaller` is told so.
    """
    loss, predictions = forward(predictor, data.examples, batches, smaller)
    if predictor.task.judged_by_answers:
        predictions = answers(predictor, data.rows, batches)
    return predictor.task.metrics(predictions, data.rows, loss, predictor.setting), predictions


def forward(
    predictor: Predictor,
    examples: Sequence[Any],
    batches: Sequence[Sequence[int]],
    smaller: Callable[[str], object] | None = None,
) -> tuple[float, list[dict[str, Any]]]:
    """(mean loss, predictions by example: empty if the task decodes none) of these batches of `examples`."""
    total = weight = 0.0
    predictions: list[dict[str, Any]] = [{} for _ in examples]
    decoded = False

    def one(batch: Sequence[int]) -> tuple[float, float, list[dict[str, Any]] | None]:
        loss = predictor.loss(predictor.batch([examples[i] for i in batch]))
        found = None if loss.outputs is None else predictor.task.decode(loss.outputs, predictor.setting)
        return float(loss.sum), float(loss.weight), found

    def halved(left: Sequence[Sequence[int]]) -> None:
        if smaller is not None:
            smaller(f"memory ran out in evaluation: its batches are halved, to {len(left[0])} rows at a time")

    with predictor.inference():
        done: Iterable[tuple[Sequence[int], Any]] = ((batch, one(batch)) for batch in batches)
        if smaller is not None:
            done = in_batches(predictor, examples, batches, one, "evaluation", halved)
        for batch, (summed, units, found) in done:
            total, weight = total + summed, weight + units
            if found is not None:
                decoded = True
                for i, prediction in zip(batch, found, strict=True):
                    predictions[i] = prediction
    return total / weight, predictions if decoded else []


def answers(predictor: Predictor, rows: Sequence[Row], batches: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """The task's answers to all rows, in their order, a batch at a time."""
    found: list[dict[str, Any]] = [{} for _ in rows]
    for batch in batches:
        for i, answer in zip(batch, predictor.predict([rows[i] for i in batch]), strict=True):
            found[i] = answer
    return found


def require_numbers(answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> None:
    """Raise DataError, with the row's place, for the first answer that holds NaN or infinity."""
    for answer, row in zip(answers, rows, strict=True):
        name = _no_number(answer)
        if name is not None:
            raise DataError(
                f"{row.place}: {name!r} of the answer is no finite number: the row's values may be too far from those"
                " of the training rows: mend or remove it, or try --dtype float32"
            )


def _no_number(value: Any, name: str = "value") -> str | None:
    """The name of the first number that is not finite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else name
    inside: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping):
        inside = ((str(key), inner) for key, inner in value.items())
    elif isinstance(value, list | tuple):
        inside = ((name, inner) for inner in value)
    return next((found for key, inner in inside if (found := _no_number(inner, key)) is not None), None)
