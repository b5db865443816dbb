"""Which task data is of: the one that recognises all of a sample, or otherwise the one that recognises most of it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pefttool.api.errors import DataError, UsageError, suggest
from pefttool.api.task import Task
from pefttool.api.values import Row
from pefttool.config import recipe
from pefttool.config.recipe import Recipe
from pefttool.config.registry import Registry
from pefttool.data import rows, suggestions
from pefttool.toolkit.columns import most


class _Data:
    """What the recipe's data looks like: the first rows of its tables, and the items beside them."""

    def __init__(self, given: Recipe, registry: Registry) -> None:
        self.given, self.registry = given, registry
        self.path = rows.resolve(str(given.data.train), registry)
        try:
            self.columns, self.sample = rows.peek(self.path, registry, given.data.format, given.data.format_options)
        except DataError:
            if not self.items or self._has_tables():
                raise
            self.columns, self.sample = [], []  # a stray file among pictures

    @cached_property
    def items(self) -> dict[str, list[Row]]:
        """By format, the first pictures or recordings of a folder that lie beside tables, as rows of their own."""
        found: dict[str, list[Row]] = {}
        if self.given.data.format is not None:
            return found
        suffixes = {file.suffix.lower() for file in rows.files_of(self.path, self.registry).beside}
        for name in self.registry.formats:
            if suffixes.intersection(self.registry.formats[name].item_suffixes):
                with contextlib.suppress(DataError):  # none of them can be opened
                    found[name] = rows.peek(self.path, self.registry, name)[1]
        return found

    def _has_tables(self) -> bool:
        files = rows.files_of(self.path, self.registry).train
        formats = [self.registry.formats[name] for name in self.registry.formats]
        return any(one.sniff(file) is not None for file in files for one in formats)

    @property
    def items_are_classes(self) -> bool:
        """Whether pictures beside tables lie in several folders: in one they illustrate something."""
        return len({file.parent for file in rows.files_of(self.path, self.registry).beside}) > 1

    def resolved(self, name: str, items: str | None = None) -> Recipe:
        """The recipe with this task, and with the format of items, where they are the rows."""
        document = self.given.given
        if items is not None:
            document = recipe.combine(document, {"data.format": items}, ())
        return recipe.resolve(document, self.registry, task=name)


def recognise_task(given: Recipe, registry: Registry) -> tuple[Recipe, str]:
    """The recipe with its task, and how the data was understood. Two tasks that match are an error naming both.

    Pictures beside tables are what the tables name, or rows of their own where these are no rows of the task.
    """
    data = _Data(given, registry)
    if given.task is not None:
        return _as_asked(given, registry.tasks[given.task], data)
    found = _tasks_of(registry, data.sample)
    if not found:
        usual = _mostly(registry, data.sample, lambda name: data.resolved(name).task_options)
        found = {} if usual is None else dict([usual])
    formats: dict[str, str] = {}
    if not any(_names_files(registry.tasks[name]) for name in found) and data.items and data.items_are_classes:
        for kind, own in data.items.items():
            for name, why in _tasks_of(registry, own).items():
                found[name] = f"{why}, and no tables"
                formats[name] = kind
    if len(found) == 1:
        ((name, why),) = found.items()
        return data.resolved(name, formats.get(name)), f"task {name}, recognised from the data: {why}"
    seen = ", ".join(map(repr, data.columns)) or "none"
    why = "more than one task recognises it: " + ", ".join(found)
    if not found:
        why = f"no task recognises it{_one_by_one(registry, data.sample)}"
        hints = _hints(registry, data)
        if hints:
            raise UsageError(f"data {data.path}: columns {seen}: {why}; is it {' or '.join(hints)}?")
    other = _other_formats(data.path, registry) if not found and given.data.format is None else ""
    raise UsageError(f"data {data.path}: columns {seen}: {why}; {other}say --task NAME {suggest('', registry.tasks)}")


def _as_asked(given: Recipe, task: Task, data: _Data) -> tuple[Recipe, str]:
    reason = task.recognise(data.columns, [row.values for row in data.sample]) if data.sample else None
    if reason is None and not _fits(task, given.task_options, data.sample):
        for kind, own in data.items.items():
            if _fits(task, given.task_options, own):
                return data.resolved(task.name, kind), f"task {task.name}, as asked; data: {kind}, and no tables"
    return given, f"task {task.name}, as asked" + (f"; data: {reason}" if reason else "")


def _hints(registry: Registry, data: _Data) -> list[str]:
    """Options with which a task takes these rows, which have a class: of the tasks that know most of the columns."""
    found = {}
    for name in registry.tasks:
        task = registry.tasks[name]
        hint = (
            None if task.by_name_only else suggestions.columns(task, type(task).Options(), data.sample, labelled=True)
        )
        if hint is not None:
            found[name] = hint
    surest = max((hint.count(" -o ") for hint in found.values()), default=0)
    return [hint for hint in found.values() if hint.count(" -o ") == surest]


def _one_by_one(registry: Registry, sample: Sequence[Row]) -> str:
    """What some rows look like, where too few of them do."""
    counts = Counter(name for row in sample for name in _tasks_of(registry, [row]))
    shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(3))
    return f" (of the first {len(sample)} rows by themselves: {shown})" if shown else ""


def _other_formats(path: Path, registry: Registry) -> str:
    """The formats, among those that have to be asked for, in which a task would recognise this file."""
    found = []
    for name in registry.formats:
        if path.suffix.lower() in registry.formats[name].on_request:
            with contextlib.suppress(DataError):  # it has no such columns
                _, sample = rows.peek(path, registry, name)
                found += [f"-o data.format={name} ({task})" for task in _tasks_of(registry, sample)]
    return f"read it with {' or '.join(found)}, or " if found else ""


def _tasks_of(registry: Registry, sample: Sequence[Row]) -> dict[str, str]:
    """Every task that recognises these rows, all of them together, and why."""
    if not sample:
        return {}
    columns = list(dict.fromkeys(column for row in sample for column in row.values))
    values = [row.values for row in sample]
    found = {name: registry.tasks[name].recognise(columns, values) for name in registry.tasks}
    return {name: reason for name, reason in found.items() if reason is not None}


def _mostly(registry: Registry, sample: Sequence[Row], options_of: Callable[[str], Any]) -> tuple[str, str] | None:
    """(task, why) where no task recognises all rows, and exactly one all but a few that it will tell of; or None.

    A row that the task would take as it is, without having recognised it, counts with the usual ones: a picture without
    boxes, and a class on one line of many, which would be passed over otherwise. `options_of` gives a task's options.
    """
    alone = [_tasks_of(registry, [row]) for row in sample]
    counts = Counter(name for found in alone for name in found)
    recognised: dict[str, str] = {}
    for name in (name for name, count in counts.items() if count > len(sample) / 2):
        task, options = registry.tasks[name], options_of(name)
        usual = [
            row
            for row, found in zip(sample, alone, strict=True)
            if name in found or task.check_row(task.locate(row, options).values, options) is None
        ]
        together = _tasks_of(registry, usual)
        if most(len(usual), len(sample)) and set(together) == {name}:
            recognised[name] = f"{together[name]}, in {len(usual)} of the first {len(sample)} rows"
    return next(iter(recognised.items())) if len(recognised) == 1 else None


def _fits(task: Task, options: Any, sample: Sequence[Row]) -> bool:
    """Whether the task has nothing to say against any one of these rows."""
    return any(task.check_row(task.locate(row, options).values, options) is None for row in sample)


def _names_files(task: Task) -> bool:
    """Whether the task's rows name files, as a table does beside pictures."""
    return type(task).files is not Task.files
