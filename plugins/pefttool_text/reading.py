"""Whole files as text and strict JSON: what the formats are read with, and complaints that say where."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from pefttool import DataError, DataProblem, Row
from pefttool.toolkit.text_files import lines

SPACE = re.compile(r"[ \t\r\n]*")


def text_of(path: Path) -> str:
    """A file that is read whole. Raises DataError for bytes that are not UTF-8."""
    parts = []
    for _, line, problem in lines(path):
        if problem is not None:
            raise DataError(str(problem))
        parts.append(line)
    return "".join(parts)


def short(text: str) -> str:
    text = " ".join(text[:200].split())
    return repr(text if len(text) <= 50 else text[:47] + "...")


class StrictJson:
    """JSON as its standard has it. What Python accepts beyond that, or would lose, is left in `faults`."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._decoder = json.JSONDecoder(
            parse_constant=self._constant,
            parse_float=self._float,
            parse_int=self._int,
            object_pairs_hook=self._object,
        )

    def parse(self, text: str, start: int = 0) -> tuple[Any, int]:
        """(value, end) of the value at `start`. Raises ValueError or RecursionError."""
        self.faults.clear()
        value, end = self._decoder.raw_decode(text, start)
        if "\\u" in text[start:end]:
            try:
                json.dumps(value, ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError:
                self.faults.append("half of a surrogate pair is no character")
        return value, end

    def _constant(self, name: str) -> None:
        self.faults.append(f"{name} is not JSON")

    def _float(self, digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            self.faults.append(f"{short(digits)} is beyond float64")
        return value

    def _int(self, digits: str) -> int:
        try:
            return int(digits)
        except ValueError:  # Python refuses to convert thousands of digits
            self.faults.append(f"an integer of {len(digits)} digits is too long")
            return 0

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            self.faults.append(f"key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
        return values

    def row(self, value: Any, text: str, file: str, line: int) -> Row | DataProblem:
        """The row that `value`, just parsed from `text`, is; or what keeps it from being one."""
        if self.faults:
            return DataProblem(file, line, f"found {short(text)}, expected a JSON object ({self.faults[0]})")
        if not isinstance(value, dict):
            return DataProblem(file, line, f'found {short(text)}, expected a JSON object such as {{"text": ...}}')
        return Row(value, file, line)


def skip(text: str, at: int) -> int:
    space = SPACE.match(text, at)
    return space.end() if space else at


def json_document(path: Path) -> Any:
    """The one JSON value that a file holds. Raises DataError for anything else, and for what would be lost of it."""
    strict, text = StrictJson(), text_of(path)
    try:
        value, end = strict.parse(text, skip(text, 0))
        if skip(text, end) < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: {error.msg}; expected one JSON object: mend it there") from error
    except RecursionError as error:
        raise DataError(f"{path}: {error}; expected one JSON object: mend it") from error
    if strict.faults:
        raise DataError(f"{path}: {strict.faults[0]}; expected JSON: mend it")
    return value
