"""What a delivered adapter finds of rows: in the batches in which its run was evaluated, so that it finds the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pefttool.api.errors import DataError
from pefttool.api.values import DataProblem, Row
from pefttool.data import batches, encoding
from pefttool.data.encoding import Encoded
from pefttool.export.reload import Reloaded
from pefttool.inference import evaluate


def measure(
    loaded: Reloaded,
    rows: Sequence[Row],
    batch_size: int | None = None,
    bad_rows: Callable[[Sequence[DataProblem], int], None] | None = None,
) -> tuple[dict[str, float], Encoded]:
    """(metrics of these rows, the rows as they were encoded); by default in batches as large as the run's.

    Raises DataError for a row that the task finds wrong, unless `bad_rows` takes them (as `batches.encode` says).
    """
    task, processor = loaded.task, loaded.processor
    encoded = loaded.prepared(
        encoding.encode(rows, task, processor, loaded.setting, encoding.Telling(bad_rows=bad_rows))
    )
    order = batches.by_length([e["length"] for e in encoded.examples], batch_size or loaded.batch_size)
    metrics, _ = evaluate.evaluate(replace(loaded, setting=loaded.as_evaluated(encoded.examples)), encoded, order)
    return metrics, encoded


def answers(loaded: Reloaded, rows: Sequence[Row], order: Sequence[Sequence[int]]) -> Iterator[Mapping[str, Any]]:
    """The task's answers in the rows' order, each as soon as those before it are there. `order` is their batches.

    Raises DataError for an answer that holds NaN or infinity.
    """
    found: dict[int, Mapping[str, Any]] = {}
    told = 0
    for batch in order:
        part = [rows[i] for i in batch]
        given = loaded.predict(part)
        evaluate.require_numbers(given, part)
        found.update(zip(batch, given, strict=True))
        while told in found:
            yield found.pop(told)
            told += 1


def order_of(loaded: Reloaded, rows: Sequence[Row], batch_size: int | None = None) -> list[list[int]]:
    """Row numbers in batches: those of `measure` where the rows have what it needs, and otherwise as the rows come.

    What else is in a batch changes how a row's numbers are rounded.
    """
    size = batch_size or loaded.batch_size
    as_they_come = [list(range(start, min(start + size, len(rows)))) for start in range(0, len(rows), size)]
    task, setting = loaded.task, loaded.setting
    if any(task.check_row(row.values, setting.options) for row in rows):
        return as_they_come
    try:
        examples = [task.encode(row, loaded.processor, setting) for row in rows]
    except DataError:  # a class that the model does not know
        return as_they_come
    judged = [i for i, example in enumerate(examples) if example["weight"] > 0]
    order = batches.by_length([int(examples[i]["length"]) for i in judged], size)
    rest = [i for i, example in enumerate(examples) if not example["weight"] > 0]
    others = [rest[start : start + size] for start in range(0, len(rest), size)]
    return [*([judged[i] for i in batch] for batch in order), *others]
