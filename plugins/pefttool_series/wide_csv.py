"""series-wide: a CSV file whose rows are whole series, a column for each value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import Field

from pefttool import DataError, DataFormat, DataProblem, Options, Row
from pefttool.toolkit.csv_dialect import Header
from pefttool_series.csv_records import no_number, number, records


class SeriesWideOptions(Options):
    label_column: str | None = Field(
        "label", description="column with the class; it may be absent; without a header its number, counted from 0"
    )
    value_columns: str = Field(
        "*",
        description="pattern of the columns with values, such as `t*`; by default all but the label and other_columns",
    )
    other_columns: tuple[str, ...] = Field(("id",), description="columns that are neither, and are kept as they are")
    header: bool = Field(True, description="the first line names the columns (UCR's .tsv files have none)")
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="default: found in the first line")


@dataclass(frozen=True)
class _Columns:
    header: Header
    values: list[int]
    kept: list[int]
    label: int | None


class SeriesWide(DataFormat):
    """CSV in which a row is a series of one channel: value columns, perhaps a class.

    Asked for by name: to look at, it is any CSV file.
    """

    name = "series-wide"
    Options = SeriesWideOptions
    by_name_only = True
    on_request = (".csv", ".tsv")

    def sniff(self, path: Path) -> str | None:
        return None

    def read(self, path: Path, options: SeriesWideOptions) -> Iterator[Row | DataProblem]:
        columns: _Columns | None = None
        for found in records(path, options.delimiter):
            if isinstance(found, DataProblem):
                yield found
                continue
            line, record = found
            if columns is None:
                names = tuple(map(str, range(len(record))))
                header = Header.of(str(path), line, record) if options.header else Header(names)
                columns = self._columns(path, line, header, options)
                if options.header:
                    continue
            yield self._row(str(path), line, record, columns)

    @staticmethod
    def _columns(path: Path, line: int, header: Header, options: SeriesWideOptions) -> _Columns:
        names = header.names
        label = names.index(options.label_column) if options.label_column in names else None
        kept = [i for i, name in enumerate(names) if name in options.other_columns and i != label]
        values = [i for i in header.named if fnmatchcase(names[i], options.value_columns) and i not in (label, *kept)]
        if not values:
            wanted = (
                f"expected some that match data.format_options.value_columns={options.value_columns!r}: name others"
            )
            raise DataError(f"{path}:{line}: found columns {', '.join(map(repr, names[:8]))}, {wanted}")
        return _Columns(header, values, kept, label)

    @staticmethod
    def _row(file: str, line: int, record: list[str], columns: _Columns) -> Row | DataProblem:
        complaint, names = columns.header.complaint(record), columns.header.names
        if complaint is not None:
            return DataProblem(file, line, complaint)
        series: list[float | None] = []
        for i in columns.values:
            try:
                series.append(number(record[i]))
            except ValueError:
                return DataProblem(file, line, f"column {names[i]!r}: {no_number(record[i])}")
        while len(series) > 1 and series[-1] is None:
            series.pop()  # shorter series leave the last columns empty
        values: dict[str, Any] = {names[i]: record[i] for i in columns.kept}
        values["series"] = [series]
        if columns.label is not None:
            values["label"] = record[columns.label].strip()
        return Row(values, file, line)
