"""Stage 3: Plan -> rows, checked one by one and split by the seed. Every complaint names file and line."""

from __future__ import annotations

import json
import os
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pefttool.api.errors import DataError
from pefttool.api.task import Task
from pefttool.api.values import DataProblem, Row
from pefttool.config.recipe import Recipe
from pefttool.config.registry import Registry
from pefttool.data import leaks, suggestions, unused_columns
from pefttool.data import rows as reader
from pefttool.toolkit import class_names

#: Bad rows that an error lists; the rest are counted.
SHOWN = 2
#: The next step where a task takes no row.
COLUMNS = "mend them, or say what each column is"


@dataclass(frozen=True)
class Corpus:
    """Training and held-out rows, the class names, lines that the user should read, and the hash of the files.

    `options` are the task's, with what the rows decided; `fitted` is what else the task made of the training rows.
    """

    train: tuple[Row, ...]
    eval: tuple[Row, ...]
    labels: tuple[str, ...]
    notices: tuple[str, ...]
    sha256: str
    options: Any
    fitted: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckedRows:
    """Good rows in the files' order (`eval`: None where no file holds any), and what is no good row.

    `files` are all that were read, training rows first; `shared` are a training file and its double, where every
    held-out file has one; `options` are the task's, with what the rows decided; `hint` are options with which it would
    take rows, where it takes none of these.
    """

    train: tuple[Row, ...]
    eval: tuple[Row, ...] | None
    problems: tuple[DataProblem, ...]
    notices: tuple[str, ...]
    files: tuple[Path, ...]
    options: Any
    sha256: str
    shared: tuple[Path, Path] | None = None
    hint: str | None = None


def load(
    recipe: Recipe,
    registry: Registry,
    *,
    skip_bad_rows: bool = False,
    rejects: Path | None = None,
    found: CheckedRows | None = None,
) -> Corpus:
    """Read (unless all that `read_all` gives is `found` already), check and split.

    Bad rows raise DataError, or with `skip_bad_rows` are counted and written to `rejects`.
    """
    found = read_all(recipe, registry) if found is None else found
    notices = list(found.notices)
    if found.problems:
        good = len(found.train) + len(found.eval or ())
        notices.append(bad_rows(found.problems, good, skip_bad_rows, rejects, found.hint))
    return arrange(recipe, registry, replace(found, notices=tuple(notices)))


def arrange(recipe: Recipe, registry: Registry, found: CheckedRows) -> Corpus:
    """The good rows as a run uses them: split, sampled, with their classes. Raises DataError where that cannot be."""
    assert recipe.task is not None
    task, options = registry.tasks[recipe.task], found.options
    train, held_out = list(found.train), None if found.eval is None else list(found.eval)
    notices = list(found.notices)
    seed, stratum = recipe.train.seed, _stratum(task, options)
    remedy = "give more rows"
    arranged = task.arrange(train, held_out, recipe.data.eval_fraction, options)
    if arranged is not None:
        train, held_out = list(arranged.train), list(arranged.eval)
        notices.extend(arranged.notices)
        remedy = "give more rows, or longer ones"
    elif held_out is None:
        train, held_out = split(
            train, recipe.data.eval_fraction, seed, stratum, lambda row: task.classes(row.values, options)
        )
        remedy = "give more rows, or held-out rows of their own as data.eval"
    train = sample(train, recipe.data.max_train_rows, seed, stratum)
    held_out = sample(held_out, recipe.data.max_eval_rows, seed, stratum)
    for name, part in (("train", train), ("eval", held_out)):
        if not part:
            lone = _lone_classes(train, stratum) if arranged is None and not held_out else ""
            counts = f"({len(train)} train, {len(held_out)} eval{lone})"
            raise DataError(f"data.{name}: no rows are left {counts}: {remedy}")
    labels = task.labels(train, options)
    notices += class_names.alike(labels) + class_names.absent(labels)
    notices += task.remarks(train, options)
    _check_labels(recipe, task, options, train, held_out, labels)
    sides = [(train, held_out), *([(found.train, found.eval)] if arranged is not None and found.eval else [])]
    notices += leaks.check(task, options, sides, found.shared, recipe.data.allow_overlap)
    fitted = task.fit(train, options)
    complaint = task.check_given(found.eval, options, fitted) if found.eval else None
    if complaint and found.eval:
        raise DataError(f"data {found.eval[0].file}: {complaint}")
    return Corpus(tuple(train), tuple(held_out), labels, tuple(notices), found.sha256, options, fitted)


def _lone_classes(rows: Sequence[Row], stratum: Callable[[Row], str | None]) -> str:
    """Why nothing could be held out, where each row is the only one of its class."""
    found = [stratum(row) for row in rows]
    if len(found) < 2 or None in found or len(set(found)) < len(found):
        return ""
    return (
        f": each is the only row of its class, {found[0]!r}, {found[1]!r}...; if these are quantities, say so with an"
        " option of the task (`pefttool tasks show TASK` names them)"
    )


def _stratum(task: Task, options: Any) -> Callable[[Row], str | None]:
    return lambda row: task.stratum(row.values, options)


def _check_labels(
    recipe: Recipe, task: Task, options: Any, train: Sequence[Row], held_out: Sequence[Row], labels: tuple[str, ...]
) -> None:
    """Raise DataError for the first held-out row with a class that no training row has."""

    def unseen(count: int) -> list[str]:
        """Classes that the first `count` held-out rows add."""
        return sorted(set(task.labels([*train, *held_out[:count]], options)) - set(labels))

    if not unseen(len(held_out)):
        return
    count = bisect_left(range(len(held_out)), True, key=lambda c: bool(unseen(c)))
    complaint = f"class {unseen(count)[0]!r} is not among the training rows' ({class_names.listed(labels)})"
    most = recipe.data.max_train_rows
    remedy = f"add training rows of it{f', or raise data.max_train_rows (it is {most})' if most else ''}"
    raise DataError(f"{held_out[count - 1].place}: {complaint}: {remedy}")


def read_all(recipe: Recipe, registry: Registry) -> CheckedRows:
    """Every row of the recipe's files, judged by the task."""
    assert recipe.task is not None
    task, options = registry.tasks[recipe.task], recipe.task_options
    train_files, eval_files, notices, beside = _choose_files(recipe, registry)
    problems: list[DataProblem] = []
    refused: list[Row] = []

    def good(files: Sequence[Path]) -> tuple[Row, ...]:
        reading = reader.read(files, registry, recipe.data.format, recipe.data.format_options)
        notices.extend(f"data {line}" for line in reading.formats)
        problems.extend(reading.problems)
        return judged([task.locate(row, options) for row in reading.rows], options)

    def judged(rows: Sequence[Row], options: Any) -> tuple[Row, ...]:
        both = [(row, task.check_row(row.values, options)) for row in rows]
        problems.extend(DataProblem(row.file, row.line, complaint) for row, complaint in both if complaint is not None)
        refused.extend(row for row, complaint in both if complaint is not None)
        return tuple(row for row, complaint in both if complaint is None)

    train = good(train_files)
    held_out = good(eval_files) if eval_files else None
    settled = task.settle(train, options) if train else options
    if settled != options:
        train = judged(train, settled)
        held_out = None if held_out is None else judged(held_out, settled)
    problems.sort(key=lambda p: (p.file, p.line))
    unnamed = _named_by_none(beside, [*train, *(held_out or ())], task, settled, registry)
    notices.extend([unnamed] if unnamed else [])
    left = unused_columns.line([*train, *(held_out or ())], task, settled)
    notices.extend([] if left is None else [left])
    shared = leaks.same_files(train_files, eval_files)
    hint = None if train or held_out else suggestions.columns(task, options, refused)
    files = (*train_files, *eval_files)
    sha256 = reader.fingerprint(reader.with_companions(files, registry, recipe.data.format))
    return CheckedRows(train, held_out, tuple(problems), tuple(notices), files, settled, sha256, shared, hint)


def _choose_files(
    recipe: Recipe, registry: Registry
) -> tuple[tuple[Path, ...], tuple[Path, ...], list[str], tuple[Path, ...]]:
    """(training files, held-out files, notices, pictures and recordings beside them).

    What `data.eval` names is not trained on, though it lies there too.
    """
    path = reader.resolve(str(recipe.data.train), registry)
    files = reader.files_of(path, registry, recipe.data.format)
    loose = reader.loose(path, (*files.train, *files.eval), reader.item_suffixes(registry))
    train, held_out = (tuple(p for p in part if p not in loose) for part in (files.train, files.eval))
    notices = []
    if loose:
        notices.append(f"data {_first_of(loose)}: left out, lying beside the folders of classes and in none of them")
    if recipe.data.eval is not None:
        named = reader.files_of(reader.resolve(recipe.data.eval, registry), registry, recipe.data.format)
        held_out = named.eval or named.train
        apart = {path.resolve() for path in reader.with_companions(held_out, registry, recipe.data.format)}
        train = tuple(path for path in train if path.resolve() not in apart) or train
    if files.ignored:
        notices.append(f"data {_first_of(files.ignored)}: left out, being neither training nor held-out rows")
    return train, held_out, notices, files.beside


def _named_by_none(beside: Sequence[Path], rows: Sequence[Row], task: Task, options: Any, registry: Registry) -> str:
    """The notice that counts the pictures and recordings beside tables that no row names; or nothing."""
    named = {os.path.normpath(path) for row in rows for path in task.files(row.values, options)}
    left = [path for path in beside if os.path.abspath(path) not in named]
    if not left:
        return ""
    suffix = left[0].suffix.lower()
    name = next(name for name in registry.formats if suffix in registry.formats[name].item_suffixes)
    return f"data {_first_of(left)}: left out, as no row names them (-o data.format={name} makes rows of such files)"


def _first_of(paths: Sequence[Path]) -> str:
    return f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else str(paths[0])


def same_complaint(problems: Sequence[DataProblem], good: int) -> str | None:
    """What is said of rows that all are refused for one reason, and of no other row: it once, and their number."""
    if good or len(problems) < 2 or len({problem.message for problem in problems}) > 1:
        return None
    return f"{problems[0]} (and so all {len(problems)} rows)"


def no_way_on(hint: str | None, way_out: str = COLUMNS) -> str:
    """What is said of data of which nothing is left."""
    return f"no row can be used: {way_out if hint is None else f'is it {hint}?'}"


def bad_rows(
    problems: Sequence[DataProblem],
    good: int,
    skip: bool,
    rejects: Path | None,
    hint: str | None = None,
    way_out: str = COLUMNS,
) -> str:
    """The notice that these are left out, beside `good` ones, after adding them to `rejects`; unless they are to be
    skipped, or nothing is left, raises DataError with the first of them."""
    if not good and (hint is not None or same_complaint(problems, good) is not None):
        shared = same_complaint(problems, good)
        raise DataError("\n".join([*([shared] if shared else map(str, problems[:SHOWN])), no_way_on(hint, way_out)]))
    if not skip:
        shown = [str(problem) for problem in problems[:SHOWN]]
        more = f"; the first {SHOWN} are shown, `pefttool data check` shows more" if len(problems) > SHOWN else ""
        total = f"{len(problems)} of {good + len(problems)} rows cannot be used{more}"
        raise DataError("\n".join([*shown, f"{total}: mend them, or leave them out with --skip-bad-rows"]))
    left_out = f"left out {len(problems)} of {good + len(problems)} rows that cannot be used"
    if rejects is None:
        return left_out
    lines = (json.dumps({"file": p.file, "line": p.line, "problem": p.message}, ensure_ascii=False) for p in problems)
    rejects.parent.mkdir(parents=True, exist_ok=True)
    # A file name may hold bytes that are no UTF-8; what `backslashreplace` writes for them is valid JSON.
    known = rejects.read_text(encoding="utf-8").splitlines() if rejects.exists() else []  # what a resumed run wrote
    text = "".join(line + "\n" for line in dict.fromkeys([*known, *lines]))
    rejects.write_text(text, encoding="utf-8", errors="backslashreplace")
    return f"{left_out}: see {rejects}"


def split(
    rows: Sequence[Row],
    fraction: float,
    seed: int,
    stratum: Callable[[Row], str | None],
    classes: Callable[[Row], Sequence[str]],
) -> tuple[list[Row], list[Row]]:
    """(train, eval): `fraction` of every stratum is held out, and every one of two rows or more is on both sides.

    The only row of a stratum is trained on, and so is a row with a class that no training row has.
    """
    held_out: set[int] = set()
    for members in _by_class(rows, stratum, seed):
        count = max(1, round(len(members) * fraction))
        count = min(count, len(members) - 1)
        held_out.update(members[:count])
    known = {name for i, row in enumerate(rows) if i not in held_out for name in classes(row)}
    for i in sorted(held_out):
        if not known.issuperset(classes(rows[i])):
            held_out.remove(i)
            known.update(classes(rows[i]))
    train = [row for i, row in enumerate(rows) if i not in held_out]
    return train, [row for i, row in enumerate(rows) if i in held_out]


def sample(rows: Sequence[Row], most: int | None, seed: int, stratum: Callable[[Row], str | None]) -> list[Row]:
    """At most `most` rows in their order, each class in its share: at least one row of each, if `most` allows."""
    if most is None or len(rows) <= most:
        return list(rows)
    classes = _by_class(rows, stratum, seed)
    shares = [len(members) * most / len(rows) for members in classes]
    least = 1 if most >= len(classes) else 0
    counts = [max(int(share), least) for share in shares]
    while sum(counts) < most:
        counts[max(range(len(counts)), key=lambda c: shares[c] - counts[c])] += 1
    while sum(counts) > most:
        counts[max((c for c in range(len(counts)) if counts[c] > 1), key=lambda c: counts[c] - shares[c])] -= 1
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
