"""Column lookup that the vision tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pefttool import Row
from pefttool.toolkit.columns import describe, find_column, missing_column
from pefttool_vision.pictures import SUFFIXES

IMAGE_COLUMNS = ("image", "image_path", "img", "picture", "photo", "file_name")


def names_pictures(column: str | None, sample: Sequence[Mapping[str, Any]]) -> bool:
    """Whether this column holds names of picture files, in every row."""
    return column is not None and all(
        isinstance(path := v.get(column), str) and Path(path).suffix.lower() in SUFFIXES for v in sample
    )


def check_image_column(values: Mapping[str, Any], given: str | None) -> str | None:
    """What is wrong with the column that names the picture; the file itself is not looked at."""
    column = find_column(values, given, IMAGE_COLUMNS)
    if column is None:
        return missing_column(values, given, IMAGE_COLUMNS, "image_column")
    if not isinstance(values[column], str) or not values[column].strip() or "\0" in values[column]:
        return f"column {column!r}: found {describe(values[column])}, expected the path of a picture"
    return None


def locate(row: Row, given: str | None) -> Row:
    """The row with the absolute path of its picture: as written it is relative to the file that the row stands in."""
    if check_image_column(row.values, given) is not None:
        return row
    column = find_column(row.values, given, IMAGE_COLUMNS)
    assert column is not None
    path = Path(row.values[column]).expanduser()
    if path.is_absolute():
        return row
    beside = Path(row.file).absolute().parent if row.file != "<text>" else Path.cwd()
    return Row({**row.values, column: str(beside / path)}, row.file, row.line)
