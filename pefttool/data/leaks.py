"""What would let a run look better than it is: held-out rows that are trained on, and inputs that tell the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pefttool.api.errors import DataError
from pefttool.api.task import Task
from pefttool.api.values import Caution, Row
from pefttool.data.rows import fingerprint

#: More than this share of the held-out rows among the training rows is refused.
MOST = 0.5
#: Rows that are looked at for inputs that tell the class, the fewest that say something, and the share that agrees.
LOOKED_AT, FEWEST, NEARLY_ALL = 1000, 20, 0.99
REMEDY = "give held-out rows that are not trained on, or set -o data.allow_overlap=true"


@dataclass(frozen=True)
class Overlap:
    """Held-out rows that are training rows too: how many, and the first with its double.

    `recurring` is the share of the training rows that are there more than once themselves.
    """

    count: int
    of: int
    held_out: Row
    train: Row
    recurring: float

    @property
    def by_mistake(self) -> bool:
        """Most held-out rows are concerned, and it is no habit of the data to say things twice (as short tables do)."""
        share = self.count / self.of
        return share > MOST and self.recurring < share / 2

    def __str__(self) -> str:
        places = f"such as {self.held_out.place} = {self.train.place}"
        return f"{self.count} of {self.of} held-out rows are among the training rows too, {places}"


def overlap(task: Task, options: Any, train: Sequence[Row], held_out: Sequence[Row]) -> Overlap | None:
    """Held-out rows whose input, as the task tells rows apart, is a training row's."""
    keys = [task.key(row.values, options) for row in train]
    first = dict(zip(reversed(keys), reversed(train), strict=True))
    both = [(first[key], row) for row in held_out if (key := task.key(row.values, options)) in first]
    if not both:
        return None
    recurring = sum(count for count in Counter(keys).values() if count > 1) / len(keys)
    return Overlap(len(both), len(held_out), both[0][1], both[0][0], recurring)


def same_files(train: Sequence[Path], held_out: Sequence[Path]) -> tuple[Path, Path] | None:
    """(training file, held-out file) with the same content, if every held-out file is a training file, too."""
    sizes: dict[int, list[Path]] = {}
    for path in train:
        sizes.setdefault(path.stat().st_size, []).append(path)
    found = None
    for path in held_out:
        alike = sizes.get(path.stat().st_size, [])
        digest = fingerprint([path]) if alike else None
        other = next((other for other in alike if fingerprint([other]) == digest), None)
        if other is None:
            return None
        found = found or (other, path)
    return found


def check(
    task: Task,
    options: Any,
    sides: Sequence[tuple[Sequence[Row], Sequence[Row]]],
    files: tuple[Path, Path] | None,
    allowed: bool,
) -> list[str]:
    """Warnings. Raises DataError where the held-out rows are the training rows and that is not `allowed`.

    `sides` are (training, held-out) rows: as the run uses them, then as they were where a task made them of others.
    `files` are those of `same_files`.
    """
    found = next((found for side in sides if (found := overlap(task, options, *side)) is not None), None)
    if not allowed and files is not None:
        trained, judged = files
        same = "is trained on" if trained == judged else f"has the same content as {trained}, which is trained on"
        raise DataError(f"data.eval: {judged} {same}: {REMEDY}")
    if not allowed and found is not None and found.by_mistake:
        raise DataError(f"data.eval: {found}: {REMEDY}")
    warnings: list[str] = [] if found is None else [Caution(f"{found}: held-out metrics will flatter")]
    column = telling_column(task, options, sides[0][0])
    if column is not None:
        warnings.append(
            Caution(
                f"column {column!r} tells the class in nearly all rows, and is an input: is it the answer under"
                " another name? leave it out if it is not known when the model is used"
            )
        )
    return warnings


def telling_column(task: Task, options: Any, rows: Sequence[Row]) -> str | None:
    """An input column whose value stands for the row's class, one to one, in nearly all rows; None where there is none.

    Asked of tasks with one class a row that say what their input is.
    """
    looked_at = rows[:LOOKED_AT]
    classes = [task.stratum(row.values, options) for row in looked_at]
    if type(task).key is Task.key or len(looked_at) < FEWEST or None in classes or len(set(classes)) < 2:
        return None
    for column in looked_at[0].values:
        if not all(column in row.values for row in looked_at):
            continue
        pairs = Counter(
            (str(row.values[column]), label) for row, label in zip(looked_at, classes, strict=True)
        ).most_common()
        chosen: dict[str, tuple[str | None, int]] = {}
        for (value, label), count in pairs:
            if value not in chosen and label not in {other for other, _ in chosen.values()}:
                chosen[value] = (label, count)
        agreeing = sum(count for _, count in chosen.values())
        if (
            agreeing >= NEARLY_ALL * len(looked_at)
            and len(chosen) > 1
            and _is_input(task, options, looked_at[0], column)
        ):
            return column
    return None


def _is_input(task: Task, options: Any, row: Row, column: str) -> bool:
    """Whether the row would be another one with another value there."""
    value = row.values[column]
    other = value + 1 if isinstance(value, int | float) else f"{value} or not"
    try:
        return task.key({**row.values, column: other}, options) != task.key(row.values, options)
    except (KeyError, TypeError, ValueError, OSError, DataError):
        return False
