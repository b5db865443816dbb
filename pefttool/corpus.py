"""Stage 3: Plan -> rows, checked one by one and split by the seed. Every complaint names file and line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pefttool import rows as reader
from pefttool.errors import DataError
from pefttool.interfaces import DataProblem, Row, Task
from pefttool.recipe import Recipe
from pefttool.registry import Registry

#: Bad rows that an error lists; the rest are counted.
SHOWN = 5


@dataclass(frozen=True)
class Corpus:
    """Training and held-out rows, the class names, and lines that the user should read."""

    train: tuple[Row, ...]
    eval: tuple[Row, ...]
    labels: tuple[str, ...]
    notices: tuple[str, ...]


def load(recipe: Recipe, registry: Registry, *, skip_bad_rows: bool = False, rejects: Path | None = None) -> Corpus:
    """Read, check and split. Bad rows raise DataError, or with `skip_bad_rows` are counted and written to `rejects`."""
    assert recipe.task is not None
    task, options = registry.tasks[recipe.task], recipe.task_options
    train, held_out, problems, notices = _read(recipe, registry, task, options)
    if problems:
        notices.append(_bad_rows(problems, len(train) + len(held_out), skip_bad_rows, rejects))
    seed = recipe.train.seed
    if held_out is None or not held_out:
        train, held_out = split(train, recipe.data.eval_fraction, seed, lambda row: task.stratum(row.values, options))
    stratum = _stratum(task, options)
    train = sample(train, recipe.data.max_train_rows, seed, stratum)
    held_out = sample(held_out, recipe.data.max_eval_rows, seed, stratum)
    for name, part in (("train", train), ("eval", held_out)):
        if not part:
            raise DataError(f"data.{name}: no rows are left: give more rows, or another data.eval_fraction")
    labels = task.labels(train, options)
    unseen = sorted({str(stratum(row)) for row in held_out} - set(labels)) if labels else []
    if unseen:
        row = next(row for row in held_out if stratum(row) == unseen[0])
        raise DataError(f"{row.place}: class {unseen[0]!r} is not among the training rows' ({', '.join(labels)})")
    duplicates = _duplicates(task, options, train, held_out)
    if duplicates:
        notices.append(duplicates)
    return Corpus(tuple(train), tuple(held_out), labels, tuple(notices))


def _stratum(task: Task, options: Any) -> Callable[[Row], str | None]:
    return lambda row: task.stratum(row.values, options)


def _read(
    recipe: Recipe, registry: Registry, task: Task, options: Any
) -> tuple[list[Row], list[Row], list[DataProblem], list[str]]:
    files = reader.find_files(reader.resolve(str(recipe.data.train), registry))
    eval_files = files.eval
    if recipe.data.eval is not None:
        named = reader.find_files(reader.resolve(recipe.data.eval, registry))
        eval_files = named.eval or named.train
    parts: list[list[Row]] = []
    problems: list[DataProblem] = []
    notices: list[str] = []
    for paths in (files.train, eval_files):
        reading = reader.read(paths, registry, recipe.data.format)
        notices += [f"data {line}" for line in reading.formats]
        problems += reading.problems
        good = []
        for row in reading.rows:
            complaint = task.check_row(row.values, options)
            if complaint is None:
                good.append(row)
            else:
                problems.append(DataProblem(row.file, row.line, complaint))
        parts.append(good)
    problems.sort(key=lambda p: (p.file, p.line))
    return parts[0], parts[1], problems, notices


def _bad_rows(problems: Sequence[DataProblem], good: int, skip: bool, rejects: Path | None) -> str:
    if not skip:
        shown = [str(problem) for problem in problems[:SHOWN]]
        more = f"; the first {SHOWN} are shown" if len(problems) > SHOWN else ""
        total = f"{len(problems)} of {good + len(problems)} rows cannot be used{more}"
        raise DataError("\n".join([*shown, f"{total}: mend them, or leave them out with --skip-bad-rows"]))
    if rejects is None:
        return f"{len(problems)} rows cannot be used and are left out"
    lines = (json.dumps({"file": p.file, "line": p.line, "problem": p.message}, ensure_ascii=False) for p in problems)
    rejects.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return f"{len(problems)} rows cannot be used and are left out: see {rejects}"


def split(
    rows: Sequence[Row], fraction: float, seed: int, stratum: Callable[[Row], str | None]
) -> tuple[list[Row], list[Row]]:
    """(train, eval): `fraction` of every class is held out, and every class of two rows or more is on both sides."""
    held_out: set[int] = set()
    for members in _by_class(rows, stratum, seed):
        count = round(len(members) * fraction)
        if len(members) >= 2:
            count = min(max(count, 1), len(members) - 1)
        held_out.update(members[:count])
    train = [row for i, row in enumerate(rows) if i not in held_out]
    return train, [row for i, row in enumerate(rows) if i in held_out]


def sample(rows: Sequence[Row], most: int | None, seed: int, stratum: Callable[[Row], str | None]) -> list[Row]:
    """At most `most` rows in their order, each class in its share (the largest remainders are rounded up)."""
    if most is None or len(rows) <= most:
        return list(rows)
    classes = _by_class(rows, stratum, seed)
    shares = [len(members) * most / len(rows) for members in classes]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(classes)), key=lambda c: (counts[c] - shares[c], c))
    for c in by_remainder[: most - sum(counts)]:
        counts[c] += 1
    chosen = {i for members, count in zip(classes, counts, strict=True) for i in members[:count]}
    return [row for i, row in enumerate(rows) if i in chosen]


def _by_class(rows: Sequence[Row], stratum: Callable[[Row], str | None], seed: int) -> list[list[int]]:
    """Row numbers by class, each class shuffled by the seed; classes in the order of their names."""
    classes: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        classes.setdefault(stratum(row) or "", []).append(i)
    for name, members in classes.items():
        random.Random(f"{seed} {name}").shuffle(members)
    return [classes[name] for name in sorted(classes)]


def _duplicates(task: Task, options: Any, train: Sequence[Row], held_out: Sequence[Row]) -> str | None:
    seen = {task.key(row.values, options): row for row in reversed(train)}
    both = [(seen[key], row) for row in held_out if (key := task.key(row.values, options)) in seen]
    if not both:
        return None
    first, second = both[0]
    return (
        f"warning: {len(both)} held-out rows are among the training rows too, such as {second.place} = {first.place}:"
        " held-out metrics will flatter"
    )
