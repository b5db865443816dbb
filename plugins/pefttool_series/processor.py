"""What makes a series the size that a model looks at: cropped or padded to its context, and scaled."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pefttool import DataError, Row
from pefttool_series.reading import channels, observed

FILE = "series_processor.json"


@dataclass(frozen=True)
class Window:
    """`values` and `observed` (1: measured, 0: missing or padding) are channel after channel, `context_length` each.

    `padded` values were added in front of a shorter series, and `cropped` ones left out at the start of a longer.
    """

    values: list[float]
    observed: list[int]
    padded: int
    cropped: int


@dataclass(frozen=True)
class SeriesProcessor:
    """Derived from the model's config and the training rows; saved beside an adapter for the program that serves it.

    context_length      values of each channel that the model sees: the last ones of a series
    patches             tokens that it makes of them
    means, stds         of each channel over the training rows, where the model does not scale each series itself
    prediction_length   values that are forecast, where any are
    """

    context_length: int
    channels: int
    patches: int
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()
    prediction_length: int = 0

    def window(self, row: Row, column: str) -> Window:
        """The end of the row's series. What is missing, or lies before its start, gets the mean of what is there.

        Raises DataError if the row has another number of channels.
        """
        series = channels(row.values[column])
        if len(series) != self.channels:
            found = f"{row.place}: column {column!r}: found {len(series)} channels"
            raise DataError(f"{found}, expected {self.channels} as in the training rows")
        length = len(series[0])
        padding = max(self.context_length - length, 0)
        values: list[float] = []
        seen: list[int] = []
        for number, channel in enumerate(series):
            end = channel[-self.context_length :]
            there = observed(end)
            filler = math.fsum(there) / len(there) if there else 0.0
            values += [filler] * padding
            seen += [0] * padding
            for value in end:
                missing = value is None or value != value
                values.append(filler if missing or value is None else float(value))
                seen.append(0 if missing else 1)
            self._scale(values, number)
        return Window(values, seen, padding, max(length - self.context_length, 0))

    def _scale(self, values: list[float], channel: int) -> None:
        """Standardise the values of the channel that was added last, where the statistics are ours."""
        if self.means:
            start = len(values) - self.context_length
            values[start:] = [(v - self.means[channel]) / self.stds[channel] for v in values[start:]]

    def save_pretrained(self, folder: Path) -> None:
        """Write the numbers above; the adapter itself is loaded without this file, from what it derives from."""
        text = json.dumps(asdict(self), indent=1)
        (Path(folder) / FILE).write_text(text + "\n", encoding="utf-8")


def fit(rows: Sequence[Row], column: str) -> dict[str, Any]:
    """Number of channels, and mean and standard deviation of each, over the training rows.

    Raises DataError naming the first row with another number of channels than the first.
    """
    count = len(channels(rows[0].values[column]))
    sums: list[list[float]] = [[] for _ in range(count)]
    squares: list[list[float]] = [[] for _ in range(count)]
    numbers = [0] * count
    parts = []
    for row in rows:
        series = channels(row.values[column])
        if len(series) != count:
            found = f"{row.place}: column {column!r}: found {len(series)} channels"
            raise DataError(f"{found}, expected {count} as in {rows[0].place}")
        parts.append([observed(channel) for channel in series])
        for number, there in enumerate(parts[-1]):
            sums[number].append(math.fsum(there))
            numbers[number] += len(there)
    means = [math.fsum(s) / max(n, 1) for s, n in zip(sums, numbers, strict=True)]
    for part in parts:
        for number, there in enumerate(part):
            squares[number].append(math.fsum((v - means[number]) ** 2 for v in there))
    stds = [math.sqrt(math.fsum(s) / max(n, 1)) for s, n in zip(squares, numbers, strict=True)]
    return {"channels": count, "means": means, "stds": [std if std > 1e-8 else 1.0 for std in stds]}


def make(
    config: Any, fitted: Mapping[str, Any], dataset_statistics: bool, prediction_length: int = 0
) -> SeriesProcessor:
    """The processor for a PatchTST `config`; before there are rows, with the config's own number of channels."""
    patches = (max(config.context_length, config.patch_length) - config.patch_length) // config.patch_stride + 1
    statistics = fitted if dataset_statistics else {}
    return SeriesProcessor(
        config.context_length,
        fitted.get("channels", config.num_input_channels),
        patches,
        tuple(statistics.get("means", ())),
        tuple(statistics.get("stds", ())),
        prediction_length,
    )
