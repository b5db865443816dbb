"""JSON Lines, JSON, CSV, Parquet and plain text as rows, each with its line (JSON and Parquet: its number).

Parquet and text are read by the `datasets` library, streaming, so that no stale copy in a cache is ever read. JSON and
CSV are read by the standard library, because `datasets` does not give the rows as they are written: if all values of
a JSON column look like `"2024-01-01"` they become times, an integer beyond 64 bits becomes a float, a key that another
row has appears as None; in CSV `01` becomes 1 and `NA` None; a short record is filled up; and no record has a line.
"""

from __future__ import annotations

import csv
import glob
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pefttool import DataError, DataFormat, DataProblem, Options, Row
from pefttool.toolkit.csv_dialect import Header, mark_as_text, separator_of
from pefttool.toolkit.file_kinds import start_of
from pefttool.toolkit.quiet import quiet_datasets
from pefttool.toolkit.text_files import head, is_packed, lines, shown_suffix, suffix
from pefttool_text.class_columns import class_columns, named_classes
from pefttool_text.conll import Conll
from pefttool_text.parallel import ParallelText
from pefttool_text.reading import StrictJson, short, skip, text_of
from pefttool_text.squad import Squad

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
QUOTES = {"auto": '"', "double": '"', "single": "'", "none": None}
#: Characters in one CSV field; Python's own limit of 131,072 is too small for long documents.
LONGEST_FIELD = 2**31 - 1


def formats() -> list[DataFormat]:
    return [Conll(), Csv(), Json(), JsonLines(), ParallelText(), Parquet(), Squad(), Text()]


class JsonLines(DataFormat):
    """One JSON object on each line."""

    name = "jsonl"
    general = True

    def sniff(self, path: Path) -> str | None:
        return f"{shown_suffix(path)}, objects in lines" if _json_shape(path) == "lines" else None

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        strict = StrictJson()
        for number, text, problem in lines(path):
            if problem is not None:
                yield problem
            elif text.strip():
                yield self._row(strict, text.strip(), str(path), number)

    @staticmethod
    def _row(strict: StrictJson, text: str, file: str, number: int) -> Row | DataProblem:
        try:
            value, end = strict.parse(text)
            if end < len(text):
                raise json.JSONDecodeError("Extra data", text, end)
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", None) or str(error)
            return DataProblem(file, number, f"found {short(text)}, expected a JSON object ({why})")
        return strict.row(value, text, file, number)


class Json(DataFormat):
    """One JSON list of objects, or objects one after another, over any lines.

    A row's place is its number, not its line: `json.dump` writes a whole list on one line.
    """

    name = "json"
    general = True

    def sniff(self, path: Path) -> str | None:
        shape = _json_shape(path)
        return f"{shown_suffix(path)}, {shape}" if shape not in (None, "lines") else None

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        strict, text = StrictJson(), text_of(path)
        try:
            for number, (value, start, end) in enumerate(self._values(strict, text), 1):
                yield strict.row(value, text[start:end], str(path), number)
        except json.JSONDecodeError as error:  # where the next object starts cannot be known
            raise DataError(
                f"{path}:{error.lineno}: {error.msg}; expected a list of JSON objects: mend it there"
            ) from error
        except RecursionError as error:
            raise DataError(f"{path}: {error}; expected a list of JSON objects: mend it") from error

    @staticmethod
    def _values(strict: StrictJson, text: str) -> Iterator[tuple[Any, int, int]]:
        """(value, start, end) of each element of the list, or of each document of the file."""
        at = skip(text, 0)
        listed = text.startswith("[", at)
        at = skip(text, at + 1) if listed else at
        more = at < len(text) and not (listed and text.startswith("]", at))
        while more:
            value, end = strict.parse(text, at)
            yield value, at, end
            at = skip(text, end)
            more = text.startswith(",", at) if listed else at < len(text)
            at = skip(text, at + 1) if listed and more else at
        if listed:
            if not text.startswith("]", at):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            at = skip(text, at + 1)
            if at < len(text):
                raise json.JSONDecodeError("Extra data", text, at)


def _json_shape(path: Path) -> str | None:
    """`lines`, or why a file with a suffix of JSON is no JSON Lines; None for other files."""
    if suffix(path) not in JSON_SUFFIXES:
        return None
    start = head(path)
    first, ended, _ = start.partition(b"\n")
    lines_of_lists = suffix(path) != ".json" and not re.match(rb"\[\s*(\{|\]|$)", start)
    if start.startswith(b"[") and not lines_of_lists:
        return "it holds a list"
    if suffix(path) == ".json" and ended and not first.rstrip().endswith(b"}"):
        return "its objects span lines"
    return "lines"


class CsvOptions(Options):
    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="default: tab in .tsv, else whichever of , ; tab | the header line has most of",
    )
    quote: Literal["auto", "double", "single", "none"] = Field(
        "auto",
        description="mark around values that hold a delimiter; auto: double, but between tabs none (marks are text),"
        " unless the header's names stand in them",
    )


class Csv(DataFormat):
    """Comma-, semicolon- or tab-separated values with a header line; every value stays text."""

    name = "csv"
    general = True
    Options = CsvOptions

    def sniff(self, path: Path) -> str | None:
        if suffix(path) not in (".csv", ".tsv") or head(path).startswith(b"PAR1"):
            return None
        delimiter = self._delimiter(path)
        between = DELIMITERS.get(delimiter, repr(delimiter))
        marks = ", quotation marks are text" if self._quote(path, delimiter) is None else ""
        numbers = self._header_line(path).split(delimiter)[0].strip() in ("", '""')
        unnamed = ", the first column has no name, numbers the rows, and is left out" if numbers else ""
        return f"{shown_suffix(path)}, {between} between columns{marks}{unnamed}"

    @staticmethod
    def _first_lines(path: Path) -> tuple[str | None, str]:
        """(the separator that the first line says, if it does, the header line)."""
        first, _, rest = head(path).partition(b"\n")
        said = separator_of(first.decode("utf-8", "replace"))
        header = first if said is None else rest.lstrip().partition(b"\n")[0]
        return said, header.decode("utf-8", "replace").rstrip("\r")

    def _header_line(self, path: Path) -> str:
        return self._first_lines(path)[1]

    def _quote(self, path: Path, delimiter: str, asked: str = "auto") -> str | None:
        """The mark around values. Nothing needs one between tabs, and in running text a lone one would swallow rows."""
        if asked == "auto" and delimiter == "\t":
            names = self._header_line(path).split(delimiter)
            asked = "double" if all(re.fullmatch('".*"', name) for name in names) else "none"
        return QUOTES[asked]

    def _delimiter(self, path: Path) -> str:
        said, header = self._first_lines(path)
        if said is not None or suffix(path) == ".tsv":
            return said or "\t"
        return max(DELIMITERS, key=re.sub('"[^"]*"', "", header).count)  # a comma where there is none of them

    def read(self, path: Path, options: CsvOptions) -> Iterator[Row | DataProblem]:
        delimiter = options.delimiter or self._delimiter(path)
        bad: list[DataProblem] = []

        def texts() -> Iterator[str]:
            for number, text, problem in lines(path):
                bad.extend([problem] if problem is not None else [])
                yield "\n" if number == 1 and separator_of(text) is not None else text

        csv.field_size_limit(LONGEST_FIELD)
        quote = self._quote(path, delimiter, options.quote)
        quoting = csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL
        reader = csv.reader(texts(), delimiter=delimiter, quotechar=quote, quoting=quoting, strict=True)
        header: Header | None = None
        while True:
            start = reader.line_num + 1
            try:
                record = next(reader, None)
            except csv.Error as error:
                problem = self._malformed(error, str(path), start, reader.line_num)
                if header is None:
                    raise DataError(f"{problem}; mend the header line") from error
                bad.append(problem)
                record = []
            if record and delimiter == "\t" and reader.line_num > start:
                found = f"found a quoted value over lines {start} to {reader.line_num}, expected a record in one line"
                bad.append(DataProblem(str(path), start, f"{found} between tabs (is a quotation mark left open?)"))
            if record is None:
                return
            if bad and header is None:
                raise DataError(f"{bad[0]} (it is in the header line)")
            if not bad and record:
                if header is None:
                    header = Header.of(str(path), start, record)
                else:
                    yield self._row(header, record, str(path), start, quote)
            yield from bad  # and not the row that these bytes belong to
            bad.clear()

    @staticmethod
    def _malformed(error: csv.Error, file: str, start: int, end: int) -> DataProblem:
        """The record's own problem; an open quote has swallowed the rest of the file, which is never skipped."""
        if str(error) == "unexpected end of data":
            found = f'{file}:{start}: found a quote (") that is never closed, expected one before line {end} ends'
            raise DataError(f"{found}; close it, or double every quote inside a quoted value") from error
        span = f"lines {start} to {end}: " if end > start else ""
        return DataProblem(file, start, f"found a malformed record, expected separated values ({span}{error})")

    @staticmethod
    def _row(header: Header, record: list[str], file: str, line: int, quote: str | None) -> Row | DataProblem:
        complaint = header.complaint(record) or (None if quote is None else mark_as_text(record, quote))
        if complaint is not None:
            return DataProblem(file, line, complaint)
        return Row({header.names[i]: record[i] for i in header.named}, file, line)


class Parquet(DataFormat):
    """Parquet files; a row's place is its number."""

    name = "parquet"

    def sniff(self, path: Path) -> str | None:
        if start_of(path).startswith(b"PAR1"):
            return "it starts as Parquet files do"
        return f"suffix {path.suffix}" if path.suffix.lower() == ".parquet" else None

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        named = class_columns(path)
        for number, values in enumerate(_load("parquet", path), 1):
            row = {k: _drop(v) for k, v in values.items()}
            yield Row({k: named_classes(v, named[k]) if k in named else v for k, v in row.items()}, str(path), number)


class TextOptions(Options):
    split: Literal["paragraph", "line", "file"] = Field("paragraph", description="what one row is")


class Text(DataFormat):
    """Plain text: a row for each paragraph (ended by a blank line), line or file, in the column `text`."""

    name = "text"
    general = True
    Options = TextOptions

    def sniff(self, path: Path) -> str | None:
        if suffix(path) not in (".txt", ".text", ".md") or head(path).startswith(b"PAR1"):
            return None
        return shown_suffix(path)

    def read(self, path: Path, options: TextOptions) -> Iterator[Row | DataProblem]:
        part: list[str] = []
        start, problem = 1, None
        for number, line, fault in self._numbered(path):
            if part and (options.split == "line" or (options.split == "paragraph" and not line.strip())):
                yield problem or Row({"text": "".join(part).rstrip("\n")}, str(path), start)
                part, problem = [], None
            if part or line.strip():
                start = start if part else number
                part.append(line)
            problem = problem or fault
        if part:
            yield problem or Row({"text": "".join(part).rstrip("\n")}, str(path), start)

    @staticmethod
    def _numbered(path: Path) -> Iterator[tuple[int, str, DataProblem | None]]:
        """The lines as `datasets` reads them; it gives up at a byte that is not UTF-8, and where gzip packed
        lines under another name, so such files are read here.

        Its own paragraphs have no lines, and a blank line with a space in it does not end them.
        """
        if is_packed(path) or any(problem for _, _, problem in lines(path)):
            for number, line, problem in lines(path):
                yield number, line.replace("\r\n", "\n"), problem
            return
        loaded = _load("text", path, keep_linebreaks=True, encoding="utf-8-sig")
        for number, values in enumerate(loaded, 1):
            yield number, values["text"], None


def _load(kind: Literal["parquet", "text"], path: Path, **arguments: Any) -> Iterator[Mapping[str, Any]]:
    """Rows through the `datasets` library, streaming; its lock files go into a folder that is thrown away.

    Not `load_dataset`: even for a local file that asks s3.amazonaws.com (a download counter). Both take a pattern, in
    which `data [1].txt` would be `data 1.txt`.
    """
    import datasets

    builders = {"parquet": datasets.IterableDataset.from_parquet, "text": datasets.IterableDataset.from_text}
    try:
        with tempfile.TemporaryDirectory(prefix="pefttool-") as cache, quiet_datasets():
            yield from builders[kind](glob.escape(str(path.absolute())), cache_dir=cache, **arguments)
    except Exception as error:  # pyarrow and datasets raise many kinds for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} cannot be read as {kind}: {reason}; is the file complete? Get it again") from error


def _drop(value: Any) -> Any:
    """Arrow gives every struct every key: inside one, None means that it was not written."""
    if isinstance(value, Mapping):
        return {k: _drop(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_drop(item) for item in value]
    return value
