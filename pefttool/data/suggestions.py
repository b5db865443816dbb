"""What may be meant where no column has a usual name: long texts are texts, and what has few values is a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

from pefttool.api.task import Task
from pefttool.api.values import Row

#: The options that are guessed, as tasks call them.
TEXT, LABEL = "text_column", "label_column"
#: Rows that are looked at, and the most values of a class among them.
SAMPLE, MOST_VALUES = 1000, 50


def columns(task: Task, options: Any, rows: Sequence[Row], labelled: bool = False) -> str | None:
    """`--task NAME -o task.text_column=A -o task.label_column=B (3 values)`, with which the task takes all these rows.

    None where it does not. Options that the user gave stay; `labelled`: only where a class has to be named.
    """
    sample = rows[:SAMPLE]
    label, values = _label(sample)
    found = {TEXT: _text(sample, label), LABEL: label}
    known = type(task).Options.model_fields
    free = [key for key in found if key in known and found[key] and getattr(options, key, None) is None]
    for keys in ([LABEL], [TEXT], [TEXT, LABEL]):
        if not set(keys) <= set(free) or (labelled and LABEL not in keys):
            continue
        tried = options.model_copy(update={key: found[key] for key in keys})
        if all(task.check_row(task.locate(row, tried).values, tried) is None for row in sample):
            said = " ".join(f"-o {quote(f'task.{key}={found[key]}')}" for key in keys)
            return f"--task {task.name} {said}{f' ({values} values)' if LABEL in keys else ''}"
    return None


def _label(rows: Sequence[Row]) -> tuple[str | None, int]:
    """The column with the fewest values that come again, two at least; the last such column: a class stands behind."""
    counts = {
        name: len({str(row.values[name]) for row in rows})
        for name in _columns(rows)
        if all(isinstance(row.values[name], str | int | bool) and row.values[name] != "" for row in rows)
    }
    few = {name: count for name, count in counts.items() if 2 <= count <= min(MOST_VALUES, len(rows) // 2)}
    if not few:
        return None, 0
    least = min(few.values())
    name = [name for name, count in few.items() if count == least][-1]
    return name, least


def _text(rows: Sequence[Row], label: str | None) -> str | None:
    """The column with the longest texts, of several words in most rows."""
    lengths: Mapping[str, int] = {
        name: sum(len(row.values[name]) for row in rows)
        for name in _columns(rows)
        if name != label
        and all(isinstance(row.values[name], str) for row in rows)
        and sum(" " in row.values[name].strip() for row in rows) > len(rows) / 2
    }
    return max(lengths, key=lengths.__getitem__, default=None)


def _columns(rows: Sequence[Row]) -> list[str]:
    """Those that all rows have."""
    return [name for name in (rows[0].values if rows else ()) if all(name in row.values for row in rows)]
