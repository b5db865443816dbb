"""Which task rows are of: the one that recognises all of a sample, or else the one that most of it is recognised by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pefttool.registry import Registry
from pefttool.values import Row

#: From this share on, what most are decides, and the others are faults to be told one by one.
MOST = 2 / 3


def most(count: int, total: int) -> bool:
    """Whether `count` of `total` is a clear majority."""
    return count >= MOST * total > 0


def tasks_of(registry: Registry, rows: Sequence[Row]) -> dict[str, str]:
    """Every task that recognises these rows, all of them together, and why."""
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    values = [row.values for row in rows]
    found = {name: registry.tasks[name].recognise(columns, values) for name in registry.tasks}
    return {name: reason for name, reason in found.items() if reason is not None}


def mostly(registry: Registry, rows: Sequence[Row], options_of: Callable[[str], Any]) -> tuple[str, str] | None:
    """(task, why) where no task recognises all rows, and exactly one all but a few that it will tell of; or None.

    A row that the task would take as it is, without having recognised it, counts with the usual ones: a picture without
    boxes, and a class on one line of many, which would else be passed over. `options_of` gives a task's options.
    """
    alone = [tasks_of(registry, [row]) for row in rows]
    counts = Counter(name for found in alone for name in found)
    recognised: dict[str, str] = {}
    for name in (name for name, count in counts.items() if count > len(rows) / 2):
        task, options = registry.tasks[name], options_of(name)
        usual = [
            row
            for row, found in zip(rows, alone, strict=True)
            if name in found or task.check_row(task.locate(row, options).values, options) is None
        ]
        together = tasks_of(registry, usual)
        if most(len(usual), len(rows)) and set(together) == {name}:
            recognised[name] = f"{together[name]}, in {len(usual)} of the first {len(rows)} rows"
    return next(iter(recognised.items())) if len(recognised) == 1 else None
