"""Records of a CSV file, each with the line it starts on; what cannot be read is told, and not skipped."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path

from pefttool import DataError
from pefttool.values import DataProblem

DELIMITERS = ",;\t|"
#: What stands for a missing value; everything else has to be a number.
MISSING = ("", "?", "na", "nan", "null", "none")
LONGEST_FIELD = 2**31 - 1


def lines(path: Path) -> Iterator[tuple[int, str, DataProblem | None]]:
    """(number, text, problem) of every line."""
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                text = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                try:
                    yield number, text.decode("utf-8"), None
                except UnicodeDecodeError as error:
                    found = f"found byte 0x{text[error.start]:02x} at position {error.start + 1}, expected UTF-8 text"
                    yield number, text.decode("utf-8", "replace"), DataProblem(str(path), number, found)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def records(path: Path, delimiter: str | None) -> Iterator[tuple[int, list[str]] | DataProblem]:
    """(line, fields) of every record that is not blank; a DataProblem in the place of one that cannot be read.

    Raises DataError for a quote that is never closed: it has swallowed the rest of the file.
    """
    bad: list[DataProblem] = []
    delimiter = delimiter or _delimiter(path)

    def texts() -> Iterator[str]:
        for _, text, problem in lines(path):
            bad.extend([problem] if problem is not None else [])
            yield text

    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            if str(error) == "unexpected end of data":
                raise DataError(f'{path}:{start}: found a quote (") that is never closed; close it') from error
            bad.append(DataProblem(str(path), start, f"found a malformed record, expected separated values ({error})"))
            record = []
        if record is None:
            yield from bad
            return
        if bad:
            yield from bad
            bad.clear()
        elif any(field.strip() for field in record):
            yield start, record


def _delimiter(path: Path) -> str:
    """The one that the first line has most of; a comma where there is none."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = next((text for _, text, _ in lines(path) if text.strip()), "")
    return max(DELIMITERS, key=re.sub('"[^"]*"', "", first).count)


def header_of(path: Path, line: int, record: list[str]) -> list[str]:
    """The names of the columns. Raises DataError if one occurs twice."""
    names = [name.strip() for name in record]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}:{line}: column {twice!r} occurs twice: give each column a name of its own")
    return names


def short(text: str) -> str:
    text = " ".join(text[:200].split())
    return repr(text if len(text) <= 40 else text[:37] + "...")


def number(text: str) -> float | None:
    """The number that a field holds, or None where it is missing. Raises ValueError for anything else."""
    stripped = text.strip()
    if stripped.lower() in MISSING:
        return None
    value = float(stripped)
    if not math.isfinite(value):
        raise ValueError(f"{stripped} is not finite")
    return value
