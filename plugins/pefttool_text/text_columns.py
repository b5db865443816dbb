"""One or two texts in a row: which columns they stand in, and how they are encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from pefttool import Caution
from pefttool.toolkit.class_names import stands_for_nothing
from pefttool.toolkit.columns import describe, find_column, missing_column
from pefttool_text.encoder import TYPES

TEXT_COLUMNS = ("text", "sentence", "review", "content", "body")
PAIRS = (
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text", "text_pair"),
)


class TextOptions(Protocol):
    @property
    def text_column(self) -> str | None: ...

    @property
    def pair_column(self) -> str | None: ...


def usual_pair(columns: Iterable[str]) -> tuple[str, str] | None:
    """The first of the usual pairs of which both are there."""
    present = {name.casefold(): name for name in columns if isinstance(name, str)}
    return next(((present[a], present[b]) for a, b in PAIRS if a in present and b in present), None)


def columns(values: Mapping[str, Any], options: TextOptions) -> tuple[str | None, str | None]:
    """(column of the text, column of the second text or None), where they are there.

    Without options two texts are what stands under a usual pair of names; with `text_column` alone, one text is meant.
    """
    if options.text_column is None and options.pair_column is None:
        pair = usual_pair(values)
        return pair if pair is not None else (find_column(values, None, TEXT_COLUMNS), None)
    first = find_column(values, options.text_column, TEXT_COLUMNS)
    return first, find_column(values, options.pair_column, ()) if options.pair_column is not None else None


def complaint(values: Mapping[str, Any], options: TextOptions) -> str | None:
    """What is wrong with the texts of a row, or None."""
    first, second = columns(values, options)
    if first is None:
        return _missing_half(values, options) or missing_column(
            values, options.text_column, TEXT_COLUMNS, "text_column"
        )
    if second is None and options.pair_column is not None:
        return missing_column(values, options.pair_column, (), "pair_column")
    for column in (first, second):
        if column is not None and (not isinstance(values[column], str) or not values[column].strip()):
            return f"column {column!r}: found {describe(values[column])}, expected text"
    return None


def _missing_half(values: Mapping[str, Any], options: TextOptions) -> str | None:
    """What is said of a row that has one text of a usual pair, and no other text."""
    if options.text_column is not None or options.pair_column is not None:
        return None
    for option, pairs in (("pair_column", PAIRS), ("text_column", [(b, a) for a, b in PAIRS])):
        for present, absent in pairs:
            if present in values:
                return f"{missing_column(values, absent, (), option)} beside {present!r}"
    return None


def absent(given: Sequence[str]) -> list[str]:
    """A warning where texts are only what programs write for a missing value."""
    found = [text for text in given if stands_for_nothing(text)]
    if not found:
        return []
    return [
        Caution(
            f"{len(found)} of {len(given)} texts of the training rows are only {found[0].strip()!r} or so, as"
            " programs write a missing value: leave such rows out"
        )
    ]


def texts(values: Mapping[str, Any], options: TextOptions) -> tuple[str, ...]:
    """The one or two texts of a row that `complaint` had nothing to say of."""
    return tuple(str(values[column]) for column in columns(values, options) if column is not None)


def encode(given: tuple[str, ...], processor: Any, longest: int) -> dict[str, Any]:
    """`input_ids`, their `length`, whether they are `truncated`; for two texts `token_type_ids`, where the model has
    them. Of two texts the longer one loses its end."""
    encoded = processor(*given, truncation=True, max_length=longest + 1)
    truncated = len(encoded["input_ids"]) > longest
    if truncated:
        encoded = processor(*given, truncation=True, max_length=longest)
    ids = list(encoded["input_ids"])
    found: dict[str, Any] = {"input_ids": ids, "length": len(ids), "truncated": truncated}
    if len(given) > 1 and TYPES in encoded:
        found[TYPES] = list(encoded[TYPES])
    return found
