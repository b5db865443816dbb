"""Pictures in folders: each file is a row, and the folder that it lies in is its class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pefttool import DataFormat, DataProblem, Row
from pefttool_vision.pictures import SUFFIXES, complaint


class Images(DataFormat):
    """Pictures in a folder for each class: a file is a row, its path in `image`, its folder's name in `label`."""

    name = "images"
    item_suffixes = SUFFIXES

    def sniff(self, path: Path) -> str | None:
        return f"suffix {path.suffix}" if path.suffix.lower() in SUFFIXES else None

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        whole = path.absolute()
        problem = complaint(str(whole))
        if problem is not None:
            yield DataProblem(str(path), 1, problem)
        else:
            yield Row({"image": str(whole), "label": whole.parent.name}, str(path), 1)
