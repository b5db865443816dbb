"""CoNLL columns: a word and its tag on each line, a blank line between sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pefttool import DataFormat, DataProblem, Row
from pefttool.toolkit import text_files
from pefttool_text import tagging

SUFFIXES = (".conll", ".bio", ".iob", ".iob2")
#: Suffixes of plain text and tables, under which such files are often found, too.
TEXT_SUFFIXES = (".txt", ".text", ".tsv")
#: CoNLL-2003 marks the beginning of a document by a line of this word.
DOCUMENT = "-DOCSTART-"
#: Lines of words that have to look alike before a text file is taken for one of columns.
ENOUGH = 3
#: The share of them that has to: the others are mistyped.
NEARLY = 0.9


class Conll(DataFormat):
    """A word on each line, its tag in the last column, separated by tabs or spaces; a blank line ends a sentence.

    A row is a sentence, on its first line: `tokens` (the first column) and `tags` (the last one).
    """

    name = "conll"

    def sniff(self, path: Path) -> str | None:
        suffix = text_files.suffix(path)
        if suffix in SUFFIXES:
            return text_files.shown_suffix(path)
        if suffix in TEXT_SUFFIXES and is_tagged(text_files.head(path)):
            return "words and tags in columns"
        return None

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        words: list[list[str]] = []
        start, columns = 1, 0
        problem: DataProblem | None = None
        for number, text, fault in text_files.lines(path):
            line = split(text)
            if not line or line[0] == DOCUMENT:
                if problem is not None or words:
                    yield problem or _row(words, str(path), start)
                words, problem = [], None
                continue
            start = start if words else number
            columns = columns or (len(line) if fault is None else 0)
            words.append(line)
            if problem is None:  # the first of a sentence is told, and the sentence is no row
                problem = fault or _ragged(line, columns, str(path), number)
        if problem is not None or words:
            yield problem or _row(words, str(path), start)


def split(line: str) -> list[str]:
    """The columns of a line: between tabs if there are some (a word may then hold spaces), else between spaces."""
    text = line.strip(" \r\n")
    columns = [part.strip() for part in text.split("\t")] if "\t" in text else text.split()
    return columns if any(columns) else []


def is_tagged(head: bytes) -> bool:
    """Whether the first kilobytes of a file are words, with tags of entities in the last of two or more columns.

    A line or a tag may be mistyped, but not the first: a table with a header line is none.
    """
    text = head.decode("utf-8", "replace")
    whole = text[: text.rfind("\n") + 1] if len(head) >= text_files.HEAD // 2 else text
    rows = [row for row in map(split, whole.splitlines()) if row and row[0] != DOCUMENT]
    if len(rows) < ENOUGH:
        return False
    ((width, usual),) = Counter(map(len, rows)).most_common(1)
    if width < 2 or usual < NEARLY * len(rows) or not (rows[0][-1] == tagging.OUTSIDE or _is_tag(rows[0][-1])):
        return False
    tags = [row[-1] for row in rows if row[-1] != tagging.OUTSIDE]
    return bool(tags) and sum(map(_is_tag, tags)) >= NEARLY * len(tags)


def _is_tag(text: str) -> bool:
    return any(scheme.fullmatch(text) for scheme in (tagging.BIO, tagging.OTHER_SCHEMES))


def _ragged(line: list[str], columns: int, file: str, number: int) -> DataProblem | None:
    if len(line) == columns > 1 and all(line):
        return None
    found = "found an empty column" if len(line) == columns > 1 else f"found {len(line)} columns"
    expected = f"expected {columns} as on the lines before" if columns > 1 else "expected a word and its tag"
    return DataProblem(file, number, f"{found} ({' '.join(line)[:50]!r}), {expected}")


def _row(words: list[list[str]], file: str, line: int) -> Row:
    return Row({"tokens": [word[0] for word in words], "tags": [word[-1] for word in words]}, file, line)
