"""What rows of series hold: columns by name, channels of numbers; what is wrong with them, in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pefttool.toolkit.columns import describe, find_column, missing_column

SERIES_COLUMNS = ("series", "values", "signal")
LABEL_COLUMNS = ("label", "labels", "class", "category")
#: What `series-long` grouped and ordered the values by, and says of them.
TIMES = "timestamps"
OF_LONG = ("channels", "id", TIMES)
NUMBERS = {int, float}
MISSING = type(None)
#: Models square values, and add up some thousand squares, in float32 (which ends at 3.4e38).
LARGEST = 1e17


def is_series(value: Any) -> bool:
    """A list of numbers, or of lists of numbers: one list a channel, null where a value is missing.

    However large they are: a series with a number too large is a bad row of its task, and not of none.
    """
    return check_series(value, "series", of_any_size=True) is None


def missing_series(values: Mapping[str, Any], given: str | None) -> str:
    """What is said of a row without a series: it may be a line of a table that other formats make series of."""
    found = missing_column(values, given, SERIES_COLUMNS, "series_column")
    if given is not None or any(isinstance(value, list) for value in values.values()):
        return found
    return (
        f"{found}; if a line is a moment, read the file with -o data.format=series-long (it needs a column `id` where"
        " there are several series), and if a line is a series, with -o data.format=series-wide"
    )


def channels(value: Any) -> list[Sequence[float | None]]:
    """The channels of a series that `check_series` found good: a flat list is one."""
    return list(value) if value and isinstance(value[0], list | tuple) else [value]


def check_series(value: Any, column: str, of_any_size: bool = False) -> str | None:
    """What keeps a column from being a series: equally long channels of finite numbers, one of them not missing."""
    where = f"column {column!r}"
    if not isinstance(value, list | tuple) or not value:
        return f"{where}: found {describe(value)}, expected a list of numbers, or one such list for each channel"
    nested = [isinstance(part, list | tuple) for part in value]
    if any(nested) and not all(nested):
        return f"{where}: found numbers beside lists, expected a list of numbers, or one such list for each channel"
    found = channels(value)
    for number, channel in enumerate(found):
        complaint = _check_channel(channel, where if not nested[0] else f"{where}, channel {number}", of_any_size)
        if complaint is not None:
            return complaint
    lengths = sorted({len(channel) for channel in found})
    if len(lengths) > 1:
        return f"{where}: found channels of {lengths[0]} to {lengths[-1]} values, expected one length"
    return None


def _check_channel(channel: Sequence[Any], where: str, of_any_size: bool) -> str | None:
    kinds = set(map(type, channel))
    if not kinds <= NUMBERS | {MISSING}:
        at, odd = next((i, v) for i, v in enumerate(channel) if type(v) not in NUMBERS and v is not None)
        return f"{where}, value {at}: found {describe(odd)}, expected a number, or null where it is missing"
    if not kinds & NUMBERS or all(v is None or _is_nan(v) for v in channel):
        return f"{where}: found {len(channel)} values, expected at least one number among them"
    if of_any_size:
        return None
    infinite = next((i for i, v in enumerate(channel) if v is not None and not _fits(v)), None)
    if infinite is not None:
        expected = f"expected a number that float32 holds, and its square (below {LARGEST:g}): use a larger unit"
        return f"{where}, value {infinite}: found {describe(channel[infinite])}, {expected}"
    return None


def _is_nan(value: float) -> bool:
    return value != value


def _fits(value: float) -> bool:
    try:
        return math.isnan(value) or abs(float(value)) < LARGEST
    except OverflowError:
        return False


def observed(channel: Sequence[float | None]) -> list[float]:
    """The values of a channel that are there (parquet has NaN for what is missing)."""
    return [float(v) for v in channel if v is not None and not _is_nan(v)]


def check_label(values: Mapping[str, Any], given: str | None) -> str | None:
    """What is wrong with the class of a row, or None."""
    column = find_column(values, given, LABEL_COLUMNS)
    if column is None and given is None and "channels" in values:
        found = f"found no class, and the channels {', '.join(map(str, values['channels']))}"
        return f"{found}: name the column of the class with -o data.format_options.label_column=COLUMN"
    if column is None:
        return missing_column(values, given, LABEL_COLUMNS, "label_column")
    if not isinstance(values[column], str | int | bool) or values[column] == "":
        return f"column {column!r}: found {describe(values[column])}, expected a class name or number"
    return None


def label_of(values: Mapping[str, Any], given: str | None) -> str:
    return str(values[find_column(values, given, LABEL_COLUMNS) or "label"])
