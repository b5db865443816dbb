"""Recordings as rows: a folder of them, or a LibriSpeech transcript beside them. Tables may name them, too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pefttool import DataError, DataFormat, DataProblem, Row
from pefttool.toolkit import text_files
from pefttool_audio.recordings import SUFFIXES

TRANSCRIPT = ".trans.txt"


class Recordings(DataFormat):
    """A recording is a row: column `audio` is its path, `label` the name of the folder it lies in."""

    name = "recordings"
    item_suffixes = SUFFIXES

    def sniff(self, path: Path) -> str | None:
        return f"suffix {path.suffix}" if path.suffix.lower() in SUFFIXES else None

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        if not size:
            yield DataProblem(str(path), 1, "the file is empty, expected a recording")
            return
        yield Row({"audio": str(path.absolute()), "label": path.absolute().parent.name}, str(path))


class Transcripts(DataFormat):
    """LibriSpeech's `*.trans.txt`: lines of `ID TEXT`, beside the recordings `ID.flac` (or another suffix)."""

    name = "transcripts"

    def sniff(self, path: Path) -> str | None:
        return f"its name ends in {TRANSCRIPT}" if path.name.lower().endswith(TRANSCRIPT) else None

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        beside = _beside(path.absolute().parent)
        for number, text, problem in text_files.lines(path):
            if problem is not None:
                yield problem
            elif text.strip():
                yield _row(text, beside, str(path), number)


def _beside(folder: Path) -> dict[str, Path]:
    """The recordings in a folder, by their names without suffix."""
    try:
        return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES}
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from error


def _row(text: str, beside: dict[str, Path], file: str, line: int) -> Row | DataProblem:
    name, *words = text.split(maxsplit=1)
    if not words:
        return DataProblem(file, line, f"found {name[:50]!r} alone, expected the name of a recording and its words")
    if name not in beside:
        message = f"no recording {name[:50]!r} beside this file, expected one with a suffix of {', '.join(SUFFIXES)}"
        return DataProblem(file, line, message)
    return Row({"audio": str(beside[name]), "text": words[0].strip()}, file, line)
