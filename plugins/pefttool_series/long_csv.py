"""series-long: a CSV file whose rows are moments: which series, when, and the values of its channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from pefttool import DataFormat, DataProblem, Options, Row
from pefttool.toolkit import timestamps
from pefttool.toolkit.csv_dialect import Header
from pefttool_series import long_columns
from pefttool_series.csv_records import no_number, number, records, short
from pefttool_series.long_columns import ID, OPTION, TIME, Columns
from pefttool_series.reading import TIMES

#: The way out where the lines are in order of time, and their times cannot be read.
ORDERED = (
    "or have the order of the lines be it (data.format_options.time_column: null, value_columns: those with values)"
)


class SeriesLongOptions(Options):
    id_column: str | None = Field(
        ID[0],
        description=f"column that says which series; default: the first of {', '.join(ID)}, or the only one of text, if"
        " its values repeat; absent: the file is one series",
    )
    time_column: str | None = Field(
        TIME[0],
        description=f"column with the time, increasing within a series; default: the first of {', '.join(TIME)};"
        " absent: the order of the lines is it",
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
        header: Header | None = None
        where = str(path)
        lines: list[tuple[int, list[str]]] = []
        for found in records(path, options.delimiter):
            if isinstance(found, DataProblem):
                yield found
            elif header is None:
                header, where = Header.of(str(path), *found), f"{path}:{found[0]}"
            else:
                complaint = header.complaint(found[1])
                if complaint is None:
                    lines.append(found)
                else:
                    yield DataProblem(str(path), found[0], complaint)
        if header is None:
            return
        columns = long_columns.choose(where, header, [record for _, record in lines], options)
        series: dict[str, _Series] = {}
        for line, record in lines:
            complaint = self._add(series, line, record, columns)
            if complaint is not None:
                yield DataProblem(str(path), line, complaint)
        yield from (self._row(str(path), name, one, columns) for name, one in series.items())

    @staticmethod
    def _add(series: dict[str, _Series], line: int, record: list[str], columns: Columns) -> str | None:
        """Add a moment to its series; or what is wrong with it."""
        values: list[float | None] = []
        for i in columns.values:
            try:
                values.append(number(record[i]))
            except ValueError:
                return f"column {columns.header.names[i]!r}: {no_number(record[i])}"
        label = None if columns.label is None else record[columns.label].strip()
        name = "" if columns.id is None else record[columns.id]
        one = series.setdefault(name, _Series(line, label, channels=[[] for _ in values]))
        if label != one.label:
            return f"found class {label!r}, expected {one.label!r} as in line {one.line}, where this series begins"
        if columns.time is not None:
            time = record[columns.time].strip()
            moment = timestamps.seconds(time)
            if moment is None:
                return f"found time {short(time)}, {timestamps.EXPECTED}, {ORDERED}"
            if one.times and moment <= one.last:
                expected = f"found time {short(time)} after {short(one.times[-1])}, expected times that increase"
                several = f" (of several series? name what tells them apart: {OPTION}.id_column=COLUMN)"
                return expected + ("" if columns.id is not None else several)
            one.times.append(time)
            one.last = moment
        for channel, value in zip(one.channels, values, strict=True):
            channel.append(value)
        return None

    @staticmethod
    def _row(file: str, name: str, one: _Series, columns: Columns) -> Row:
        values: dict[str, Any] = {"series": one.channels, "channels": [columns.header.names[i] for i in columns.values]}
        if columns.id is not None:
            values["id"] = name
        if one.times:
            values[TIMES] = one.times
        if one.label is not None:
            values["label"] = one.label
        return Row(values, file, one.line)
