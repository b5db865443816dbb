"""Columns of a row by the name that the user gives, or by their usual names; for tasks and their error messages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

__all__ = ["describe", "find_column", "missing_column", "most"]


def find_column(columns: Collection[str], given: str | None, usual: Sequence[str]) -> str | None:
    """The column named by the user, or the first of the usual names that is there, in these capitals or in others.

    `columns` may be a row: its keys are meant.
    """
    if given is not None:
        return given if given in columns else None
    exact = next((name for name in usual if name in columns), None)
    if exact is not None:
        return exact
    folded = {name.casefold(): name for name in columns if isinstance(name, str)}
    return next((folded[name] for name in usual if name in folded), None)


def missing_column(values: Mapping[str, Any], given: str | None, usual: Sequence[str], option: str) -> str:
    """What is wrong with a row in which `find_column` finds none; `option` is the task's that names the column."""
    expected = repr(given) if given is not None else f"one of {', '.join(map(repr, usual))}"
    return (
        f"found columns {', '.join(map(repr, values)) or 'none'}, expected {expected} (name yours with -o"
        f" task.{option}=COLUMN)"
    )


def describe(value: Any) -> str:
    """A value for an error message, short enough for one line; of a long one both ends: a path ends in its name."""
    text = repr(value)
    return text if len(text) <= 60 else text[:28] + "..." + text[-29:]


MOST = 2 / 3


def most(count: int, total: int) -> bool:
    """Whether `count` of `total` is a clear majority."""
    return count >= MOST * total > 0
