"""The `.ts` files of the UEA and UCR archives, as aeon and sktime write them.

A head of `@key value` lines, `@data`, then a series on each line: values separated by commas, dimensions by colons,
the class last. `?` and NaN are missing values. With time stamps a value is `(time,value)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pefttool import DataError, DataFormat, DataProblem, Row
from pefttool.toolkit.text_files import lines
from pefttool_series.csv_records import number, short

HEAD = 65_536
STAMPED = re.compile(r"\(([^()]*),([^(),]*)\)")


@dataclass(frozen=True)
class Head:
    """What the lines before `@data` say: `classes` is None for files without, `target` for numbers to predict."""

    classes: tuple[str, ...] | None = None
    target: bool = False
    stamped: bool = False
    dimensions: int | None = None
    length: int | None = None


class Ts(DataFormat):
    """`.ts` files of the UEA and UCR archives (aeon, sktime): one series a line, its class last."""

    name = "ts"

    def sniff(self, path: Path) -> str | None:
        if path.suffix.lower() != ".ts":
            return None
        try:
            with path.open("rb") as stream:
                head = stream.read(HEAD).lower()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        return "suffix .ts, with @data" if re.search(rb"^\s*@data\s*$", head, re.MULTILINE) else None

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        given: dict[str, tuple[int, str]] = {}
        head: Head | None = None
        for at, text, problem in lines(path):
            stripped = text.strip()
            if problem is not None:
                yield problem
            elif not stripped or (head is None and stripped.startswith(("#", "%"))):
                continue
            elif head is not None:
                yield _row(str(path), at, stripped, head)
            elif not stripped.startswith("@"):
                found = f"{path}:{at}: found {short(stripped)}"
                raise DataError(f"{found}, expected a line that starts with @, or @data: mend that line")
            elif stripped.lower() == "@data":
                head = _head(path, given)
            else:
                key, _, value = stripped[1:].partition(" ")
                given[key.lower()] = (at, value.strip())
        if head is None:
            raise DataError(
                f"{path}: found no line @data, expected one before the series: is this a .ts file of series?"
                " Name another data.format, or mend it"
            )


def _head(path: Path, given: dict[str, tuple[int, str]]) -> Head:
    def flag(key: str) -> tuple[bool, list[str]]:
        """(whether it is true, the words after that)."""
        line, value = given.get(key, (0, "false"))
        first, *rest = value.split() or ["false"]
        if first.lower() not in ("true", "false"):
            raise DataError(f"{path}:{line}: @{key}: found {short(first)}, expected true or false: mend that line")
        return first.lower() == "true", rest

    def count(key: str) -> int | None:
        line, value = given.get(key, (0, ""))
        if not value:
            return None
        if not value.isdecimal() or int(value) < 1:
            raise DataError(
                f"{path}:{line}: @{key}: found {short(value)}, expected a number of 1 or more: mend that line"
            )
        return int(value)

    labelled, classes = flag("classlabel")
    univariate = flag("univariate")[0]
    return Head(
        tuple(classes) if labelled else None,
        flag("targetlabel")[0],
        flag("timestamps")[0],
        count("dimensions") or count("dimension") or (1 if univariate else None),
        count("serieslength") if flag("equallength")[0] else None,
    )


def _row(file: str, line: int, text: str, head: Head) -> Row | DataProblem:
    values: dict[str, Any] = {}
    # Time stamps hold colons: what follows the last bracket is no time.
    parts = re.split(r":(?![^()]*\))", text) if head.stamped else text.split(":")
    if head.classes is not None or head.target:
        label = parts.pop().strip()
        if not parts:
            return DataProblem(file, line, f"found {short(text)}, expected values, a colon and the class")
        if head.classes and label not in head.classes:
            known = ", ".join(head.classes[:10])
            return DataProblem(
                file, line, f"found class {short(label)}, expected one of those of @classLabel ({known})"
            )
        values["label"] = label
    if head.dimensions is not None and len(parts) != head.dimensions:
        return DataProblem(file, line, f"found {len(parts)} dimensions, expected {head.dimensions}")
    series: list[list[float | None]] = []
    for dimension, part in enumerate(parts):
        try:
            fields = _stamped(part) if head.stamped else part.split(",")
            series.append([number(field) for field in fields])
        except ValueError as error:
            return DataProblem(file, line, f"dimension {dimension}: {_reason(error)}, expected numbers and commas")
        if head.length is not None and len(series[-1]) != head.length:
            found = f"dimension {dimension}: found {len(series[-1])} values"
            return DataProblem(file, line, f"{found}, expected {head.length} (@seriesLength)")
    if head.target:
        try:
            values["target"] = number(values.pop("label"))
        except ValueError as error:
            return DataProblem(file, line, f"target: {_reason(error)}, expected a number")
    return Row({"series": series, **values}, file, line)


def _stamped(text: str) -> list[str]:
    """The values of `(time,value),(time,value)`."""
    found = STAMPED.findall(text)
    if not found or STAMPED.sub("", text).strip(" ,"):
        raise ValueError(f"found {short(text)}")
    return [value for _, value in found]


def _reason(error: ValueError) -> str:
    text = " ".join(str(error).split())
    return f"found {text.rpartition(': ')[2][:60]}" if "could not convert" in text else text[:80]
