"""What a table says of itself that is no mistake and seldom meant: quantities as classes, identities and dates as
features."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pefttool import Caution
from pefttool_series.tabular_columns import as_number, is_missing

#: So many classes that are all numbers are a quantity, unless each has as many rows as this on average.
CLASSES, ROWS_OF_A_CLASS = 20, 20
#: A column of identities shows as one from this many rows on.
ROWS = 20
#: Names, and parts of names between `_`, of columns that number things; also `patientId` and `pidnum`.
ID_PARTS = re.compile(
    r"(^|[_\W\d])(id|ids|pid|uid|uuid|no|nr|num|number|key|index|idx|row)($|[_\W\d])|num$", re.IGNORECASE
)
#: A date as text, whichever of its numbers is the month, perhaps with a time.
DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}([T ].*)?")
CAMEL_ID = re.compile(r"[a-z](Id|ID)$")


def dates(column: str, values: Sequence[Any]) -> str | None:
    """A warning where this feature holds dates, or None: each is a category, and a later one was never seen."""
    texts = [value.strip() for value in values if isinstance(value, str) and not is_missing(value)]
    if not texts or sum(DATE.fullmatch(text) is not None for text in texts) <= len(texts) / 2:
        return None
    found = f"column {column!r} holds dates such as {texts[0]!r}, and each of {len(set(texts))} is a category apart"
    way_out = f"write what counts of them as numbers (month, days since), or leave it out with -o task.ignore={column}"
    return Caution(f"{found}, so that of another date nothing is known: {way_out}")


def quantity(column: str, labels: Sequence[str], rows: int) -> str | None:
    """A warning where these classes look like a quantity, or None."""
    numbers = [as_number(label) for label in labels]
    known = [number for number in numbers if number is not None]
    if len(known) < len(labels) or len(labels) <= CLASSES or rows >= ROWS_OF_A_CLASS * len(labels):
        return None
    found = f"column {column!r} looks like a quantity: {len(labels)} classes in {rows} rows, all of them numbers"
    span = f"from {min(known):g} to {max(known):g}"
    way_out = (
        "name the column of the class with -o task.label_column=COLUMN, or write classes of it yourself (low, high)"
    )
    return Caution(f"{found}, {span}: numbers are not predicted here, and each is a class apart: {way_out}")


def identity(column: str, values: Sequence[Any]) -> str | None:
    """A warning where this feature numbers the rows, or None: no two rows share a whole number, and it is called so,
    or the numbers follow one another."""
    numbers = [as_number(value) for value in values if not is_missing(value)]
    whole = [int(number) for number in numbers if number is not None and number == int(number)]
    if len(whole) < max(ROWS, len(values)) or len(set(whole)) < len(whole):
        return None
    consecutive = max(whole) - min(whole) < 2 * len(whole)  # some are held out; of a measure no two would be equal
    if not consecutive and not ID_PARTS.search(column) and not CAMEL_ID.search(column):
        return None
    found = f"column {column!r} has another whole number in each of {len(whole)} rows, as identities have"
    return Caution(f"{found}: leave it out with -o task.ignore={column}, or a class may be told by it")
