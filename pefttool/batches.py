"""Stage 6: rows -> encoded rows -> batches of similar length, in an order that the seed alone decides."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pefttool.errors import DataError
from pefttool.interfaces import Row, Setting, Task

#: Rows are sorted by length within windows of this many batches: long enough to save padding, short enough that an
#: epoch is not ordered by length.
WINDOW = 50


@dataclass(frozen=True)
class Encoded:
    """Encoded rows, and what they add up to. `dropped` rows have nothing to train (all of it was truncated)."""

    examples: tuple[Mapping[str, Any], ...]
    rows: tuple[Row, ...]
    dropped: tuple[Row, ...]

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
) -> Encoded:
    """Encode every row; rows without a single unit of loss are left out and reported.

    Raises DataError for a row that the task finds wrong once encoded, and if nothing at all would be trained.
    """
    examples, kept, dropped = [], [], []
    for i, row in enumerate(rows):
        example = task.encode(row, processor, setting)
        complaint = task.check_encoded(example, processor)
        if complaint:
            raise DataError(f"{row.place}: {complaint}")
        if example["weight"] > 0:
            examples.append(example)
            kept.append(row)
        else:
            dropped.append(row)
        if progress is not None and (i % 200 == 0 or i + 1 == len(rows)):
            progress(i + 1, len(rows))
    if not examples:
        where = f" (the first is {rows[0].place})" if rows else ""
        raise DataError(
            f"none of the {len(rows)} rows has a trained token{where}: answers are empty, or"
            f" train.sequence_length={setting.sequence_length} cuts them off; raise it"
        )
    return Encoded(tuple(examples), tuple(kept), tuple(dropped))


@dataclass(frozen=True)
class Position:
    """Where training stands: `index` optimiser steps into `epoch`. Enough to go on exactly from here."""

    epoch: int = 0
    index: int = 0


@dataclass(frozen=True)
class Batches:
    """The order of training. A step is `micro_batches` lists of row numbers, over all ranks together.

    Every rank computes the same order, so that nothing has to be communicated: rank r of w takes r, r+w, ...
    """

    lengths: tuple[int, ...]
    batch_size: int
    micro_batches: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(math.ceil(len(self.lengths) / self.batch_size) / self.micro_batches)

    def total_steps(self, epochs: float, max_steps: int | None) -> int:
        return max_steps or max(1, round(epochs * self.steps_per_epoch))

    def epoch(self, epoch: int) -> list[list[list[int]]]:
        """The steps of one epoch; every row occurs exactly once."""
        shuffler = random.Random(f"{self.seed} {epoch}")
        order = list(range(len(self.lengths)))
        shuffler.shuffle(order)
        window = self.batch_size * WINDOW
        batches = []
        for start in range(0, len(order), window):
            part = sorted(order[start : start + window], key=lambda i: self.lengths[i])
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        shuffler.shuffle(batches)
        return [batches[i : i + self.micro_batches] for i in range(0, len(batches), self.micro_batches)]

    def steps(self, position: Position = Position()) -> Iterator[tuple[Position, list[list[int]]]]:
        """Endless steps from `position` on, each with the position after it."""
        epoch, index = position.epoch, position.index
        while True:
            steps = self.epoch(epoch)
            for i in range(index, len(steps)):
                after = Position(epoch, i + 1) if i + 1 < len(steps) else Position(epoch + 1, 0)
                yield after, steps[i]
            epoch, index = epoch + 1, 0


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row numbers in batches of similar length, longest first (so that a lack of memory shows at once)."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
