"""Entities as spans of characters, as doccano, Prodigy and Label Studio export them: recognised, and not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pefttool.toolkit.columns import find_column

TEXT = "text"
COLUMNS = ("label", "labels", "spans", "entities")


def column(values: Mapping[str, Any]) -> str | None:
    """The column with spans of the text, if only an empty list of them."""
    found = find_column(values, None, COLUMNS) if isinstance(values.get(TEXT), str) else None
    is_list = found is not None and isinstance(values[found], list)
    return found if is_list and all(map(_is_span, values[found])) else None


def complaint(values: Mapping[str, Any]) -> str | None:
    """What a row with spans is told, or None."""
    found = column(values)
    if found is None:
        return None
    return (
        f"column {found!r}: found spans of {TEXT!r}, each with start and end, expected columns 'tokens' and 'tags', a"
        " tag for each word: convert them"
    )


def _is_span(value: Any) -> bool:
    if isinstance(value, Mapping):
        return type(value.get("start")) is int and type(value.get("end")) is int
    return isinstance(value, list) and len(value) == 3 and type(value[0]) is type(value[1]) is int
