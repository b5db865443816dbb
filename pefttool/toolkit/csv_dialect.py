"""What spreadsheets write into CSV beside rows: a first line that names the separator, and columns without a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pefttool.api.errors import DataError

__all__ = ["Header", "mark_as_text", "separator_of"]

#: Excel's first line `sep=;`, which is no header.
SEPARATOR = re.compile(r"\s*\"?sep=(?P<mark>[^\"\r\n])\"?\s*", re.IGNORECASE)
#: What the first column without a name holds: the number of the row (pandas and R write it).
ROW_NUMBER = re.compile(r"\d*")


def separator_of(line: str) -> str | None:
    """The separator that a first line `sep=;` says, or None for any other line."""
    found = SEPARATOR.fullmatch(line)
    return found["mark"] if found is not None else None


def mark_as_text(record: Sequence[str], quote: str) -> str | None:
    """What is said of a record with a value in marks behind a space, `, "a"`: the reader takes the marks for text."""
    for value in record:
        inside = value.strip()
        if value[:1].isspace() and len(inside) > 1 and inside[0] == inside[-1] == quote:
            shown = value if len(value) <= 40 else value[:37] + "..."
            return f"found a space before the quotation mark of {shown!r}, expected the mark behind the separator"
    return None


@dataclass(frozen=True)
class Header:
    """The names of all columns, in their order; '' where one has none. Such a column is no part of a row."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, file: str, line: int, record: Sequence[str]) -> Header:
        """Raises DataError for a name that occurs twice, and where no column has one."""
        names = tuple(name.strip() for name in record)
        twice = sorted({name for name in names if name and names.count(name) > 1})
        if twice:
            raise DataError(f"{file}:{line}: column {twice[0]!r} occurs twice: give each column a name of its own")
        if not any(names):
            raise DataError(f"{file}:{line}: found no name of a column, expected a header line: write one")
        return cls(names)

    @property
    def named(self) -> list[int]:
        """Places of the columns with a name."""
        return [i for i, name in enumerate(self.names) if name]

    def complaint(self, record: Sequence[str]) -> str | None:
        """What is wrong with a record: another number of values, or one in a column that has no name."""
        if len(record) != len(self.names):
            names = ", ".join(name or "unnamed" for name in self.names)
            return f"found {len(record)} values, expected {len(self.names)} ({names})"
        for place, name in enumerate(self.names):
            value = record[place].strip()
            if not name and value and not (place == 0 and ROW_NUMBER.fullmatch(value)):
                shown = value if len(value) <= 40 else value[:37] + "..."
                return f"found {shown!r} in column {place + 1}, which has no name: give it one in the header line"
        return None
