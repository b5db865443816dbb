"""Stage 6: rows -> encoded rows -> batches of similar length, in an order that the seed alone decides."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import DataError
from pefttool.api.task import Task
from pefttool.api.values import DataProblem, Loss, Row, Setting
from pefttool.data import packed_rows
from pefttool.files import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from pefttool.config.registry import Registry
    from pefttool.files.store import Store

#: Rows are sorted by length within windows of this many batches: long enough to save padding, short enough that an
#: epoch is not ordered by length.
WINDOW = 50
#: What an example, or a batch, carries under this name: the outputs of the frozen part of the model, computed before.
FEATURES = "frozen features"
#: Of each of the two rows that a model is asked with, where there are such short ones.
ASKED_TOKENS = 64


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


def encode(
    rows: Sequence[Row],
    task: Task,
    processor: Any,
    setting: Setting,
    progress: Callable[[int, int], None] | None = None,
    store: Store | None = None,
    key: str | None = None,
    bad_rows: Callable[[Sequence[DataProblem], int], object] | None = None,
) -> Encoded:
    """Encode every row; rows without a single unit of loss are left out and reported.

    With a `store` and a `key`, rows that were encoded before are read instead, and others are kept for the next time.
    Rows that cannot be encoded, or that the task finds wrong once encoded, are told to `bad_rows` (with the number of
    the others) and left out, if it allows. Raises DataError for the first of them without it, and if nothing at all
    would be trained.
    """
    kept = store.load(key) if store is not None and key is not None else None
    if kept is None:
        examples: Sequence[Mapping[str, Any]]
        examples, problems = _encode(rows, task, processor, setting, progress, bad_rows is not None)
        if problems and bad_rows is not None:
            bad_rows(list(problems.values()), len(examples))
            if not examples:
                first = next(iter(problems.values()))
                raise DataError(f"none of the {len(rows)} rows can be used; mend them, the first: {first}")
            rows = [row for i, row in enumerate(rows) if i not in problems]
            store = None  # what is kept has every row
        packed = packed_rows.pack(examples) if store is not None and key is not None else None
        if packed is not None and store is not None and key is not None:
            store.save(key, packed)
            kept = store.load(key)
    if kept is not None:
        examples = packed_rows.PackedRows(kept)  # what is read the next time is used this time, too
    both = [(example, row) for example, row in zip(examples, rows, strict=True)]
    good = [(example, row) for example, row in both if example["weight"] > 0]
    lost = [(example, row) for example, row in both if not example["weight"] > 0]
    why = task.untrained(lost[0][0], processor, setting) if lost else ""
    if not good:
        where = f" (the first is {rows[0].place}): {why}" if rows else ""
        raise DataError(f"none of the {len(rows)} rows has a trained token{where}; give rows with something to train")
    return Encoded(tuple(e for e, _ in good), tuple(r for _, r in good), tuple(r for _, r in lost), key, why)


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


@dataclass(frozen=True)
class Position:
    """Where training stands: `index` optimiser steps into `epoch`. Enough to go on exactly from here."""

    epoch: int = 0
    index: int = 0


@dataclass(frozen=True)
class Batches:
    """The order of training. A step is `micro_batches` lists of row numbers, over all ranks together.

    With `tokens` a batch has as many rows as fit into them, else `batch_size`. `packed` rows are not padded.
    Every rank computes the same order, so that nothing has to be communicated: rank r of w takes r, r+w, ...
    """

    lengths: tuple[int, ...]
    batch_size: int
    micro_batches: int
    seed: int
    tokens: int | None = None
    packed: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Of the first epoch; others may differ by a few where batches are filled by `tokens`."""
        if self.tokens is not None:
            return len(self.epoch(0))
        return math.ceil(math.ceil(len(self.lengths) / self.batch_size) / self.micro_batches)

    def total_steps(self, epochs: float, max_steps: int | None) -> int:
        if max_steps or self.tokens is None:
            return max_steps or max(1, round(epochs * self.steps_per_epoch))
        whole = int(epochs)
        steps = sum(len(self.epoch(e)) for e in range(whole)) + (epochs - whole) * len(self.epoch(whole))
        return max(1, round(steps))

    def epoch(self, epoch: int) -> list[list[list[int]]]:
        """The steps of one epoch; every row occurs exactly once."""
        shuffler = random.Random(f"{self.seed} {epoch}")
        order = list(range(len(self.lengths)))
        shuffler.shuffle(order)
        if self.packed:
            batches = self.fill(order)  # nothing is padded: nothing is gained by sorting
        else:
            window, batches = self.batch_size * WINDOW, []
            for start in range(0, len(order), window):
                batches += self.fill(sorted(order[start : start + window], key=lambda i: self.lengths[i]))
            shuffler.shuffle(batches)
        return [batches[i : i + self.micro_batches] for i in range(0, len(batches), self.micro_batches)]

    def fill(self, order: Sequence[int]) -> list[list[int]]:
        """These rows, in their order, in batches of `batch_size` rows, or of at most `tokens` tokens."""
        if self.tokens is None:
            return [list(order[i : i + self.batch_size]) for i in range(0, len(order), self.batch_size)]
        batches: list[list[int]] = []
        longest = total = 0
        for row in order:
            length = self.lengths[row]
            longest, total = max(longest, length), total + length
            cost = total if self.packed else longest * (len(batches[-1]) + 1 if batches else 1)
            if not batches or cost > self.tokens:
                batches.append([])
                longest = total = length
            batches[-1].append(row)
        return batches

    def steps(self, position: Position = Position()) -> Iterator[tuple[Position, list[list[int]]]]:
        """Endless steps from `position` on, each with the position after it."""
        epoch, index = position.epoch, position.index
        while True:
            steps = self.epoch(epoch)
            for i in range(index, len(steps)):
                after = Position(epoch, i + 1) if i + 1 < len(steps) else Position(epoch + 1, 0)
                yield after, steps[i]
            epoch, index = epoch + 1, 0


def two_short(examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Two short rows, of different lengths if there are such: to ask a model with."""
    order = sorted(examples, key=lambda e: int(e["length"]))
    longer = [e for e in order if order[0]["length"] < e["length"] <= ASKED_TOKENS]
    return [order[0], *(longer[-1:] or order[1:2])]


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row numbers in batches of similar length, longest first (so that a lack of memory shows at once)."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def collate(examples: Sequence[Mapping[str, Any]], task: Task, processor: Any, setting: Setting) -> dict[str, Any]:
    """One batch on the CPU, with the rows' features where they have some."""
    batch: dict[str, Any] = task.collate(examples, processor, setting)
    if FEATURES in examples[0]:
        features = examples[0][FEATURES].kept.batch([e[FEATURES].row for e in examples], batch)
        if features is not None:
            batch[FEATURES] = features
    return batch


def loss_of(task: Task, model: nn.Module, batch: Mapping[str, Any], setting: Setting) -> Loss:
    """The task's loss; where the batch carries features, what lies below them does not run."""
    if FEATURES not in batch:
        return task.loss(model, batch, setting)
    with batch[FEATURES].standing_in():
        return task.loss(model, {name: value for name, value in batch.items() if name != FEATURES}, setting)


def to_device(batch: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The batch with its tensors on `device`; what is not a tensor (the lengths of packed rows) stays as it is."""
    return {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
