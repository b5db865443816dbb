"""Records of a CSV file, each with the line it starts on; what cannot be read is told, and not skipped."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path

from pefttool import DataError, DataProblem
from pefttool.toolkit.csv_dialect import separator_of
from pefttool.toolkit.text_files import lines, suffix

DELIMITERS = ",;\t|"
#: What stands for a missing value; everything else has to be a number.
MISSING = ("", "?", "na", "nan", "null", "none")
#: How much of Europe writes numbers: it is not read, since `1,234` may be a thousand, too.
DECIMAL_COMMA = re.compile(r"[+-]?\d+(\.\d{3})*,\d+")
LONGEST_FIELD = 2**31 - 1


def records(path: Path, delimiter: str | None) -> Iterator[tuple[int, list[str]] | DataProblem]:
    """(line, fields) of every record that is not blank; a DataProblem in the place of one that cannot be read.

    Raises DataError for a quote that is never closed: it has swallowed the rest of the file.
    """
    bad: list[DataProblem] = []
    delimiter = delimiter or _delimiter(path)

    def texts() -> Iterator[str]:
        for number, text, problem in lines(path):
            bad.extend([problem] if problem is not None else [])
            yield "\n" if number == 1 and separator_of(text) is not None else text

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
    """The one that a line `sep=;` says, or the first line has most of; a comma where there is none."""
    first = next((text for _, text, _ in lines(path) if text.strip()), "")
    said = separator_of(first)
    if said is not None or suffix(path) == ".tsv":
        return said or "\t"
    return max(DELIMITERS, key=re.sub('"[^"]*"', "", first).count)


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


def is_number(text: str) -> bool:
    """Whether a field holds a number: it is neither missing nor text."""
    try:
        return number(text) is not None
    except ValueError:
        return False


def no_number(text: str) -> str:
    """What is said of a field that should hold a number and does not."""
    expected = f"found {short(text)}, expected a number, or nothing where it is missing"
    return f"{expected}: write a decimal point" if DECIMAL_COMMA.fullmatch(text.strip()) else expected
