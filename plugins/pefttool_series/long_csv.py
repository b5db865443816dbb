"""series-long: a CSV file whose rows are moments: which series, when, and the values of its channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from pefttool import DataError, DataFormat, Options, Row, moments
from pefttool.values import DataProblem
from pefttool_series.csv_records import header_of, number, records, short
from pefttool_series.reading import TIMES

#: The way out where the lines are in order of time, and their times cannot be read.
ORDERED = (
    "or have the order of the lines be it (data.format_options.time_column: null, value_columns: those with values)"
)


class SeriesLongOptions(Options):
    id_column: str | None = Field("id", description="column that says which series; absent: the file is one series")
    time_column: str | None = Field(
        "time", description="column with the time, increasing within a series; absent: the order of the lines is it"
    )
    value_columns: tuple[str, ...] = Field((), description="columns with values, one a channel; default: all others")
    label_column: str | None = Field("label", description="column with the class of the series; it may be absent")
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="default: found in the first line")


@dataclass
class _Series:
    line: int
    label: str | None
    times: list[str] = field(default_factory=list)
    last: float = 0.0
    channels: list[list[float | None]] = field(default_factory=list)


@dataclass(frozen=True)
class _Columns:
    names: list[str]
    values: list[int]
    id: int | None
    time: int | None
    label: int | None


class SeriesLong(DataFormat):
    """CSV in which a line is one moment of a series: its id, a time, the values of its channels, perhaps a class.

    A row's line is the first of its series. Asked for by name: to look at, it is any CSV file.
    """

    name = "series-long"
    Options = SeriesLongOptions
    by_name_only = True
    on_request = (".csv", ".tsv")

    def sniff(self, path: Path) -> str | None:
        return None

    def read(self, path: Path, options: SeriesLongOptions) -> Iterator[Row | DataProblem]:
        columns: _Columns | None = None
        series: dict[str, _Series] = {}
        for found in records(path, options.delimiter):
            if isinstance(found, DataProblem):
                yield found
                continue
            line, record = found
            if columns is None:
                columns = self._columns(path, line, header_of(path, line, record), options)
                continue
            complaint = self._add(series, line, record, columns)
            if complaint is not None:
                yield DataProblem(str(path), line, complaint)
        if columns is not None:
            yield from (self._row(str(path), name, one, columns) for name, one in series.items())

    @staticmethod
    def _columns(path: Path, line: int, names: list[str], options: SeriesLongOptions) -> _Columns:
        def place(name: str | None) -> int | None:
            return names.index(name) if name is not None and name in names else None

        absent = [name for name in options.value_columns if name not in names]
        if absent:
            found = f"{path}:{line}: found columns {', '.join(map(repr, names))}"
            raise DataError(f"{found}, expected {absent[0]!r}: name others in data.format_options.value_columns")
        roles = [place(options.id_column), place(options.time_column), place(options.label_column)]
        chosen = [names.index(name) for name in options.value_columns]
        chosen = chosen or [i for i in range(len(names)) if i not in roles]
        if not chosen:
            raise DataError(
                f"{path}:{line}: found columns {', '.join(map(repr, names))}, expected one with values, too: add one"
            )
        return _Columns(names, chosen, *roles)

    @staticmethod
    def _add(series: dict[str, _Series], line: int, record: list[str], columns: _Columns) -> str | None:
        """Add a moment to its series; or what is wrong with it."""
        if len(record) != len(columns.names):
            return f"found {len(record)} values, expected {len(columns.names)} ({', '.join(columns.names)})"
        values: list[float | None] = []
        for i in columns.values:
            try:
                values.append(number(record[i]))
            except ValueError:
                found = f"column {columns.names[i]!r}: found {short(record[i])}"
                return f"{found}, expected a number, or nothing where it is missing"
        label = None if columns.label is None else record[columns.label].strip()
        name = "" if columns.id is None else record[columns.id]
        one = series.setdefault(name, _Series(line, label, channels=[[] for _ in values]))
        if label != one.label:
            return f"found class {label!r}, expected {one.label!r} as in line {one.line}, where this series begins"
        if columns.time is not None:
            time = record[columns.time].strip()
            moment = moments.seconds(time)
            if moment is None:
                return f"found time {short(time)}, {moments.EXPECTED}, {ORDERED}"
            if one.times and moment <= one.last:
                return f"found time {short(time)} after {short(one.times[-1])}, expected times that increase"
            one.times.append(time)
            one.last = moment
        for channel, value in zip(one.channels, values, strict=True):
            channel.append(value)
        return None

    @staticmethod
    def _row(file: str, name: str, one: _Series, columns: _Columns) -> Row:
        values: dict[str, Any] = {"series": one.channels, "channels": [columns.names[i] for i in columns.values]}
        if columns.id is not None:
            values["id"] = name
        if one.times:
            values[TIMES] = one.times
        if one.label is not None:
            values["label"] = one.label
        return Row(values, file, one.line)
