"""JSON Lines, JSON, CSV, Parquet and plain text as rows, each with the line that it stands on.

Parquet and text are read by the `datasets` library (streaming, so that no stale copy in a cache is ever read). JSON
and CSV are not: its readers infer types from the values (`"2024-01-01"` becomes a time, `01` becomes 1, `NA` nothing,
a key missing in one row appears there as None) and lose the line numbers, so the standard library reads those.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pefttool import DataError, DataFormat, Options, Row
from pefttool.interfaces import DataProblem

HEAD = 4096


def formats() -> list[DataFormat]:
    return [Csv(), Json(), JsonLines(), Parquet(), Text()]


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _lines(path: Path) -> Iterator[tuple[int, str | DataProblem]]:
    """(number, text) of every line; one that is not UTF-8 comes as a problem."""
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                try:
                    yield number, raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    found = f"found byte 0x{raw[error.start]:02x} at position {error.start + 1}, expected UTF-8 text"
                    yield number, DataProblem(str(path), number, found)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 50 else text[:47] + "...")


def _parse(text: str) -> Any:
    """A JSON document, with NaN and Infinity (which JSON does not have) refused."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


class JsonLines(DataFormat):
    """One JSON object on each line."""

    name = "jsonl"

    def sniff(self, path: Path) -> str | None:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            return f"suffix {path.suffix}"
        if path.suffix.lower() == ".json" and _head(path).startswith(b"{"):
            return "suffix .json, and it starts with an object"
        return None

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        for number, text in _lines(path):
            if isinstance(text, DataProblem):
                yield text
            elif text.strip():
                yield self._row(text, str(path), number)

    @staticmethod
    def _row(text: str, file: str, number: int) -> Row | DataProblem:
        try:
            values = _parse(text)
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", None) or str(error)
            return DataProblem(file, number, f"found {_short(text)}, expected a JSON object ({why})")
        if not isinstance(values, dict):
            return DataProblem(file, number, f'found {_short(text)}, expected a JSON object such as {{"text": ...}}')
        return Row(values, file, number)


class Json(DataFormat):
    """A file that holds one JSON list of objects; a row's place is its number in the list."""

    name = "json"

    def sniff(self, path: Path) -> str | None:
        if path.suffix.lower() == ".json" and _head(path).startswith(b"["):
            return "suffix .json, and it starts with a list"
        return None

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        parts = []
        for _, text in _lines(path):
            if isinstance(text, DataProblem):
                raise DataError(str(text))
            parts.append(text)
        try:
            document = _parse("".join(parts))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: {error.msg}; expected a list of JSON objects") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: {error}; expected a list of JSON objects") from error
        if not isinstance(document, list):
            raise DataError(f"{path}: found a {type(document).__name__}, expected a list of JSON objects")
        for number, values in enumerate(document, 1):
            if isinstance(values, dict):
                yield Row(values, str(path), number)
            else:
                yield DataProblem(str(path), number, f"found {_short(json.dumps(values))}, expected a JSON object")


class CsvOptions(Options):
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="default: tab in .tsv, else a comma")


class Csv(DataFormat):
    """Comma- or tab-separated values with a header line; every value stays text."""

    name = "csv"
    Options = CsvOptions

    def sniff(self, path: Path) -> str | None:
        return f"suffix {path.suffix}" if path.suffix.lower() in (".csv", ".tsv") else None

    def read(self, path: Path, options: CsvOptions) -> Iterator[Row | DataProblem]:
        delimiter = options.delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
        problems: list[DataProblem] = []

        def texts() -> Iterator[str]:
            for _, text in _lines(path):
                if isinstance(text, DataProblem):
                    problems.append(text)
                    yield "\n"  # keeps the count of lines
                else:
                    yield text

        reader = csv.reader(texts(), delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            self._check_header(path, header)
            start = reader.line_num + 1
            for record in reader:
                yield from problems
                problems.clear()
                if record:
                    yield self._row(header, record, str(path), start)
                start = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: {error}; expected {delimiter!r}-separated values") from error
        yield from problems

    @staticmethod
    def _check_header(path: Path, header: list[str]) -> None:
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DataError(f"{path}:1: column {twice[0]!r} occurs twice: give each column a name of its own")

    @staticmethod
    def _row(header: list[str], record: list[str], file: str, line: int) -> Row | DataProblem:
        if len(record) != len(header):
            return DataProblem(file, line, f"found {len(record)} values, expected {len(header)} ({', '.join(header)})")
        return Row(dict(zip(header, record, strict=True)), file, line)


class Parquet(DataFormat):
    """Parquet files; a row's place is its number."""

    name = "parquet"

    def sniff(self, path: Path) -> str | None:
        return "it starts as Parquet files do" if _head(path).startswith(b"PAR1") else None

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        for number, values in enumerate(_load("parquet", path), 1):
            yield Row(_without_missing(values), str(path), number)


class TextOptions(Options):
    split: Literal["paragraph", "line", "document"] = Field("paragraph", description="what one row is")


class Text(DataFormat):
    """Plain text: a row for each paragraph, line or file, in the column `text`."""

    name = "text"
    Options = TextOptions

    def sniff(self, path: Path) -> str | None:
        return f"suffix {path.suffix}" if path.suffix.lower() in (".txt", ".text", ".md") else None

    def read(self, path: Path, options: TextOptions) -> Iterator[Row | DataProblem]:
        for _, text in _lines(path):
            if isinstance(text, DataProblem):
                raise DataError(str(text))
        line = 1
        for values in _load("text", path, sample_by=options.split, keep_linebreaks=True):
            text = values["text"]
            lead = len(text) - len(text.lstrip("\n"))
            if text.strip():
                yield Row({"text": text.strip()}, str(path), line + lead)
            line += text.count("\n") + (2 if options.split == "paragraph" else 0)


def _load(builder: str, path: Path, **arguments: Any) -> Iterator[Mapping[str, Any]]:
    """Rows through the `datasets` library; nothing is cached and nothing is asked of the network."""
    import datasets

    try:
        yield from datasets.load_dataset(builder, data_files=[str(path)], split="train", streaming=True, **arguments)
    except Exception as error:  # pyarrow and datasets raise many kinds for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} cannot be read as {builder}: {reason}; is the file complete?") from error


def _without_missing(value: Any) -> Any:
    """Arrow gives every struct every key: inside one, None means that it was not written."""
    if isinstance(value, Mapping):
        return {k: _drop(v) for k, v in value.items()}
    return value


def _drop(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _drop(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_drop(item) for item in value]
    return value
