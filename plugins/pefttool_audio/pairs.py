"""A recording and a text file of the same name: `clip.wav`, and in `clip.txt` what is said in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pefttool import DataError, DataFormat, DataProblem, Row
from pefttool.toolkit import text_files
from pefttool_audio.recordings import SUFFIXES

TEXT_SUFFIXES = (".txt", ".lab")


class SpokenText(DataFormat):
    """A text file beside a recording of the same name (`clip.txt`, `clip.wav`): the row is the recording's transcript.

    `audio` is the recording's path, `text` the whole file, its lines joined by spaces.
    """

    name = "spoken-text"

    def sniff(self, path: Path) -> str | None:
        if path.suffix.lower() not in TEXT_SUFFIXES:
            return None
        return "beside a recording of the same name" if len(_recordings(path)) == 1 else None

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        found = _recordings(path)
        if len(found) != 1:
            names = ", ".join(one.name for one in found) or "none"
            raise DataError(
                f"{path}: a recording of the same name should be beside it ({path.stem}.wav), and there is {names}: put"
                " one there, or name another data.format"
            )
        words = []
        for _, text, problem in text_files.lines(path):
            if problem is not None:
                yield problem
                return
            words += text.split()
        if words:
            yield Row({"audio": str(found[0].absolute()), "text": " ".join(words)}, str(path))
        else:
            yield DataProblem(str(path), 1, f"the file is empty, expected what is said in {found[0].name}")


def _recordings(path: Path) -> list[Path]:
    """The recordings beside a file that have its name."""
    try:
        return [one for suffix in SUFFIXES if (one := path.with_suffix(suffix)).is_file()]
    except (OSError, ValueError):
        return []
