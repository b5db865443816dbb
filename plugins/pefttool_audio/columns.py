"""Which column holds what, and how a value is shown in a complaint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def find_column(values: Mapping[str, Any], given: str | None, usual: Sequence[str]) -> str | None:
    """The column named by the user, or the first of the usual names that is there."""
    if given is not None:
        return given if given in values else None
    return next((name for name in usual if name in values), None)


def missing_column(values: Mapping[str, Any], given: str | None, usual: Sequence[str], option: str) -> str:
    expected = repr(given) if given is not None else f"one of {', '.join(map(repr, usual))}"
    found = ", ".join(map(repr, values)) or "none"
    return f"found columns {found}, expected {expected} (name yours with -o task.{option}=COLUMN)"


def describe(value: Any) -> str:
    """A value for an error message, short enough for one line; of a path the end is what tells it from others."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:20]}...{text[-57:]}"
