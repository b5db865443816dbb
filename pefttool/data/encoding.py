"""Stage 5: rows -> encoded rows, by the task: read again where they were kept, and told where they cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import DataError
from pefttool.api.task import Task
from pefttool.api.values import DataProblem, Row, Setting
from pefttool.data import packed_rows
from pefttool.files import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from pefttool.config.registry import Registry
    from pefttool.files.store import Store


@dataclass(frozen=True)
class Encoded:
    """Encoded rows, and what they add up to. `dropped` rows have nothing to train (all of it was truncated).

    `why` is the reason of the first of these. `key` is a hash over everything that the examples depend on, where that
    can be known.
    """

    examples: tuple[Mapping[str, Any], ...]
    rows: tuple[Row, ...]
    dropped: tuple[Row, ...]
    key: str | None = None
    why: str = ""

    @property
    def tokens(self) -> int:
        return sum(e["length"] for e in self.examples)

    @property
    def trained(self) -> int:
        return sum(e["trained"] for e in self.examples)

    @property
    def truncated(self) -> int:
        return sum(bool(e["truncated"]) for e in self.examples)


@dataclass(frozen=True)
class Examples:
    """The rows of a run, encoded: those that it trains on, and those that it is judged by."""

    train: Encoded
    held_out: Encoded


@dataclass(frozen=True)
class Telling:
    """Who is told while rows are encoded: `progress` of (done, total), and `bad_rows` of those that cannot be used,
    with the number of the others."""

    progress: Callable[[int, int], None] | None = None
    bad_rows: Callable[[Sequence[DataProblem], int], object] | None = None


@dataclass(frozen=True)
class Cached:
    """Where encoded rows are kept for the next time, and under which key; nowhere unless both are there."""

    store: Store | None = None
    key: str | None = None

    def load(self) -> Mapping[str, Tensor] | None:
        return self.store.load(self.key) if self.store is not None and self.key is not None else None

    def save(self, examples: Sequence[Mapping[str, Any]]) -> None:
        packed = packed_rows.pack(examples) if self.store is not None and self.key is not None else None
        if packed is not None and self.store is not None and self.key is not None:
            self.store.save(self.key, packed)


NOBODY, NOWHERE = Telling(), Cached()


def encode(
    rows: Sequence[Row],
    task: Task,
    processor: Any,
    setting: Setting,
    telling: Telling = NOBODY,
    kept: Cached = NOWHERE,
) -> Encoded:
    """Encode every row; rows without a single unit of loss are left out and reported.

    Rows that were `kept` are read instead, and others are kept for the next time. Rows that cannot be encoded, or that
    the task finds wrong once encoded, are told to `telling.bad_rows` and left out, if it allows. Raises DataError for
    the first of them without it, and if nothing at all would be trained.
    """
    known = kept.load()
    if known is None:
        examples: Sequence[Mapping[str, Any]]
        bad_rows = telling.bad_rows
        examples, problems = _encode(rows, task, processor, setting, telling.progress, bad_rows is not None)
        if problems and bad_rows is not None:
            bad_rows(list(problems.values()), len(examples))
            if not examples:
                first = next(iter(problems.values()))
                raise DataError(f"none of the {len(rows)} rows can be used; mend them, the first: {first}")
            rows = [row for i, row in enumerate(rows) if i not in problems]
        else:  # what is kept has every row
            kept.save(examples)
            known = kept.load()
    if known is not None:
        examples = packed_rows.PackedRows(known)  # what is read the next time is used this time, too
    both = [(example, row) for example, row in zip(examples, rows, strict=True)]
    good = [(example, row) for example, row in both if example["weight"] > 0]
    lost = [(example, row) for example, row in both if not example["weight"] > 0]
    why = task.untrained(lost[0][0], processor, setting) if lost else ""
    if not good:
        where = f" (the first is {rows[0].place}): {why}" if rows else ""
        raise DataError(f"none of the {len(rows)} rows has a trained token{where}; give rows with something to train")
    return Encoded(tuple(e for e, _ in good), tuple(r for _, r in good), tuple(r for _, r in lost), kept.key, why)


def left_out(encoded: Encoded, which: str, purpose: str) -> str:
    """What is said of the rows that were dropped, one at least: `which` rows ("training rows"), lost for what."""
    total = len(encoded.rows) + len(encoded.dropped)
    count = f"{len(encoded.dropped)} of {total} {which}"
    return f"left out: {count}, with nothing to {purpose}, such as {encoded.dropped[0].place}: {encoded.why}"


def _encode(
    rows: Sequence[Row],
    task: Task,
    processor: Any,
    setting: Setting,
    progress: Callable[[int, int], None] | None,
    collects: bool,
) -> tuple[list[Mapping[str, Any]], dict[int, DataProblem]]:
    """(encoded rows, what is wrong with each of the others, by its number). Unless it `collects`, raises DataError for
    the first of these."""
    examples: list[Mapping[str, Any]] = []
    problems: dict[int, DataProblem] = {}
    for i, row in enumerate(rows):
        try:
            example = task.encode(row, processor, setting)
            complaint = task.check_encoded(example, processor)
            if complaint:
                raise DataError(f"{row.place}: {complaint}")
            examples.append(example)
        except DataError as error:
            if not collects:
                raise
            problems[i] = DataProblem(row.file, row.line, str(error).removeprefix(f"{row.place}: "))
        if progress is not None and (i % 200 == 0 or i + 1 == len(rows)):
            progress(i + 1, len(rows))
    return examples, problems


def rows_key(
    task: Task, registry: Registry, model: Path, processor: Any, setting: Setting, rows: Sequence[Row]
) -> str | None:
    """A hash over everything that these rows, once encoded, depend on; None where that cannot be known."""
    if not task.repeatable:
        return None
    owner = registry.tasks.owner(task.name)
    options = task.encoding_options(setting.options, processor)
    try:
        return fingerprint.key(
            what="encoded rows",
            rows=fingerprint.rows(rows),
            files=fingerprint.files(path for row in rows for path in task.files(row.values, setting.options)),
            task=[task.name, owner.distribution, owner.version],
            setting={**asdict(setting), "options": options.model_dump(mode="json")},
            processor=[type(processor).__qualname__, fingerprint.processor_files(model)],
            code=fingerprint.code([task, processor]),
        )
    except (fingerprint.Unknowable, OSError):
        return None
