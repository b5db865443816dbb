"""Stage 6: rows -> encoded rows -> batches of similar length, in an order that the seed alone decides."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


#: Rows are sorted by length within windows of this many batches: long enough to save padding, short enough that an
#: epoch is not ordered by length.
WINDOW = 50
#: Of each of the two rows that a model is asked with, where there are such short ones.
ASKED_TOKENS = 64


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
