"""Which column of a series-long table is what: by the names that are given, by usual names, and by what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pefttool import DataError
from pefttool.toolkit import timestamps
from pefttool.toolkit.csv_dialect import Header
from pefttool_series.csv_records import DECIMAL_COMMA, is_number, no_number, short

if TYPE_CHECKING:
    from pefttool_series.long_csv import SeriesLongOptions

#: Usual names of the columns that say which series, and when. The first is the option's default.
ID = ("id", "series_id", "unique_id", "item_id")
TIME = ("time", "timestamp", "datetime", "date", "ds")
LABEL = ("label",)
OPTION = "-o data.format_options"


@dataclass(frozen=True)
class Columns:
    """Where the columns are that have a role, by their places."""

    header: Header
    values: list[int]
    id: int | None
    time: int | None
    label: int | None


def choose(where: str, header: Header, rows: Sequence[Sequence[str]], options: SeriesLongOptions) -> Columns:
    """`where` is the place of the header.

    Raises DataError for a column that is named and not there, and where text is left that would be values.
    """
    names = header.names
    found = f"{where}: found columns {', '.join(repr(names[i]) for i in header.named)}"

    def place(option: str, usual: Sequence[str]) -> int | None:
        """Of the column that is named, or the first usual one where the option is as it was."""
        name = getattr(options, option)
        there = next((one for one in (usual if name == usual[0] else (name,)) if one in names), None)
        if there is None and name not in (None, usual[0]):
            raise DataError(f"{found}, expected {name!r}: name another with {OPTION}.{option}")
        return None if there is None else names.index(there)

    which, time, label = place("id_column", ID), place("time_column", TIME), place("label_column", LABEL)
    absent = [name for name in options.value_columns if name not in names]
    if absent:
        raise DataError(f"{found}, expected {absent[0]!r}: name others in data.format_options.value_columns")
    values = [names.index(name) for name in options.value_columns]
    values = values or [i for i in header.named if i not in (which, time, label)]
    text = {i: first for i in values if (first := _text_of(rows, i)) is not None}
    if which is None and options.id_column == ID[0] and not options.value_columns and len(text) == 1:
        (only,) = text
        repeats = len({row[only] for row in rows}) < len(rows)
        if names[only] not in TIME and repeats and not _one_order(rows, only, time):
            which, text, values = only, {}, [i for i in values if i != only]
    for i, first in text.items():
        if DECIMAL_COMMA.fullmatch(first):
            raise DataError(f"{where}: column {names[i]!r}: {no_number(first)} in the whole column")
    if text:
        shown = ", ".join(f"{names[i]!r} (such as {short(first)})" for i, first in text.items())
        series = "" if which is not None else f"the series' own (there is no `id`) with {OPTION}.id_column=COLUMN, "
        ways = (
            f"name {series}a class with {OPTION}.label_column=COLUMN, or those with values with {OPTION}.value_columns"
        )
        raise DataError(f"{where}: found text in column {shown}, expected numbers: {ways}")
    if not values:
        raise DataError(f"{found}, expected one with values, too: add one")
    return Columns(header, values, which, time, label)


def _one_order(rows: Sequence[Sequence[str]], which: int, time: int | None) -> bool:
    """Whether the lines are in order of time across what this column says, though it changes to and fro: then it may
    be a text that is measured, too (the weather of each day), and only its user knows."""
    if time is None:
        return False
    blocks = 1 + sum(row[which] != before[which] for before, row in pairwise(rows))
    if blocks == len({row[which] for row in rows}):
        return False
    found = [timestamps.seconds(row[time].strip()) for row in rows]
    known = [moment for moment in found if moment is not None]
    return len(known) == len(rows) and all(before < after for before, after in pairwise(known))


def _text_of(rows: Sequence[Sequence[str]], place: int) -> str | None:
    """The first value of a column in which there is no number, and not nothing; None for one of numbers."""
    found = [row[place].strip() for row in rows if row[place].strip()]
    return found[0] if found and not any(map(is_number, found)) else None
