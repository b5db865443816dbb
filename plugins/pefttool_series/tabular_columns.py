"""What a table's columns are, found in the training rows; and a row of values as places in one table of vectors.

A number column is cut at the quantiles of its training values into bins, and is encoded piecewise linearly (Gorishniy
et al., arXiv:2203.05556): a value in bin k, at the fraction f of its width, is the sum of the vectors of the bins
before k and f times that of bin k. A category has one vector. Either is a pair (index, fraction); each column has one
more index for what is missing, or was never seen.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pefttool import DataError, Row, suggest
from pefttool.toolkit import class_names
from pefttool_series.csv_records import DECIMAL_COMMA

MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
#: More different texts than this in one column are names or sentences, and no categories.
MOST_CATEGORIES = 100
#: So many values of a file are no chance; half as many different numbers in one column are a quantity.
MANY = 20
#: Texts beside numbers that stand for what is missing: no more than these.
FEW = 2
#: Numbers as people write them, which are none to a program: $1,234.50, 17 %, 12€.
DRESSED = re.compile(r"[+-]?[$€£¥]?\s?[+-]?(\d{1,3}([, ']\d{3})+|\d+)(\.\d+)?\s?[%$€£¥]?")
#: Words in one value; what has more is a sentence.
MOST_WORDS = 6
#: How far outside its training range a number is still told apart, in widths of the outermost bin.
OVERSHOOT = 1.0


def is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_number(value: Any) -> float | None:
    """The finite number that a value is, or is written as; None for all else. Truth values are 0 and 1."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class Column:
    """A column with `edges` (B + 1 ascending numbers around B bins), or with `categories`.

    `optional`: some training rows do not have it, not even empty (JSON objects without the key).
    """

    name: str
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    optional: bool = False

    @property
    def bins(self) -> int:
        return max(len(self.edges) - 1, 0)

    @property
    def size(self) -> int:
        """Vectors that belong to it; the last one is for missing and unknown values."""
        return (self.bins or len(self.categories)) + 1

    def place(self, value: Any) -> tuple[int, float]:
        """(index within the column, fraction). Raises ValueError for text where numbers are expected."""
        if is_missing(value):
            return self.size - 1, 1.0
        if self.categories:
            known = self._category(value)
            return (self.size - 1 if known is None else known), 1.0
        number = as_number(value)
        if number is None:
            raise ValueError("expected a number, as in the training rows")
        index = min(max(bisect_right(self.edges, number) - 1, 0), self.bins - 1)
        low, high = self.edges[index], self.edges[index + 1]
        return index, min(max((number - low) / (high - low), -OVERSHOOT), 1 + OVERSHOOT)

    def _category(self, value: Any) -> int | None:
        """Which category this is; of one that was never seen the only one that differs in capitals or spaces alone, as
        `True` of Python from `true` of JSON."""
        text = str(value)
        if text in self.categories:
            return self.categories.index(text)
        alike = [i for i, name in enumerate(self.categories) if name.strip().casefold() == text.strip().casefold()]
        return alike[0] if len(alike) == 1 else None

    def unknown(self, values: Sequence[Any]) -> str | None:
        """What is wrong with a file's values of this column where none of many is a category of it, or None."""
        present = [value for value in values if not is_missing(value)]
        if not self.categories or len(present) < MANY or len(set(map(str, present))) < 2:
            return None
        if any(self._category(value) is not None for value in present):
            return None
        return (
            f"column {self.name!r}: found {present[0]!r}, and none of its {len(present)} values is one of the training"
            f" rows' ({class_names.listed(self.categories)}): write them as there"
        )

    def as_json(self) -> dict[str, Any]:
        held = {"edges": list(self.edges)} if self.edges else {"categories": list(self.categories)}
        return {"name": self.name, **held, **({"optional": True} if self.optional else {})}


def read(fitted: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns that `fit` found, as they were saved."""
    return tuple(
        Column(c["name"], tuple(c.get("edges", ())), tuple(c.get("categories", ())), c.get("optional", False))
        for c in fitted["columns"]
    )


@dataclass(frozen=True)
class Table:
    """The columns that rows are placed in. It stands where tasks have a tokenizer, and keeps the model's own, if any.

    `of_model`: they are those of the rows that the model was pretrained on, and its token embeddings their vectors.
    """

    columns: tuple[Column, ...]
    of_model: bool = False
    tokenizer: Any = None

    def save_pretrained(self, folder: Any) -> None:
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def of_model(config: Any) -> tuple[Column, ...] | None:
    """The columns of a model that was pretrained on rows of a table (`table` in its config.json), or None."""
    held = getattr(config, "table", None)
    return read(held) if isinstance(held, Mapping) and held.get("columns") else None


def place(columns: Sequence[Column], values: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """(indices, fractions), one a column, indices counted through all columns. Raises ValueError naming the column."""
    indices, fractions, start = [], [], 0
    for column in columns:
        value = values.get(column.name)
        try:
            index, fraction = column.place(value)
        except ValueError as error:
            raise ValueError(f"column {column.name!r}: found {value!r}, {error}") from error
        indices.append(start + index)
        fractions.append(fraction)
        start += column.size
    return indices, fractions


def lacking(columns: Sequence[Column], rows: Sequence[Row]) -> str | None:
    """What is wrong with rows of another file, none of which has some of these columns, or a category of one, or None.

    A value that a single row lacks is missing; a column that all lack has another name there, and where no value is
    known, values have other names.
    """
    there = {name for row in rows for name in row.values}
    gone = [column.name for column in columns if not column.optional and column.name not in there]
    if not gone:
        found = (column.unknown([row.values.get(column.name) for row in rows]) for column in columns)
        return next((complaint for complaint in found if complaint is not None), None)
    others = f" (and {len(gone) - 1} more)" if len(gone) > 1 else ""
    hint = suggest(gone[0], there - {column.name for column in columns}, "found besides")
    return f"no row has the training rows' column {gone[0]!r}{others}: {hint}: name it so, or add it"


def require_known(own: Sequence[Column], given: Sequence[Column]) -> None:
    """Raise DataError for `given` columns of the training rows that a model with `own` columns has not: to be left out
    has to be asked for. Own ones that the rows lack are missing in every row.
    """
    names = [column.name for column in own]
    unknown = [column.name for column in given if column.name not in names]
    if not unknown:
        return
    if len(unknown) == len(given):
        raise DataError(
            f"tabular-classification: the model knows none of the training rows' columns ({', '.join(unknown)}), but"
            f" {', '.join(names)}: name yours so, or use a text encoder such as example:all-minilm-l6-v2, which takes"
            " any columns"
        )
    several = f"[{', '.join(unknown)}]" if len(unknown) > 1 else unknown[0]
    raise DataError(
        f"tabular-classification: the model was pretrained on a table without the column {unknown[0]!r}"
        f"{f' (and {len(unknown) - 1} more)' if len(unknown) > 1 else ''}: {suggest(unknown[0], names, 'its columns')}:"
        f" name it so, or leave it out with --task tabular-classification -o 'task.ignore={several}'"
    )


def fit(
    rows: Sequence[Row], features: Callable[[Mapping[str, Any]], Sequence[str]], bins: int, tails: int = 0
) -> list[Column]:
    """The columns that `features` names of these rows, in their order; those that never vary are left out.

    The outermost of a column's `bins` are halved `tails` times, towards what is rare.
    Raises DataError for a column that is neither numbers nor categories, and if none is left.
    """
    names = list(dict.fromkeys(name for row in rows for name in features(row.values)))
    columns = [column for name in names if (column := _fit(name, rows, bins, tails)) is not None]
    if not columns:
        raise DataError(
            f"tabular-classification: no column of the {len(rows)} training rows varies"
            f" ({', '.join(names) or 'there are none besides the class'}): give numbers or categories to learn from"
        )
    return columns


def _fit(name: str, rows: Sequence[Row], bins: int, tails: int) -> Column | None:
    present = [(row, value) for row in rows if not is_missing(value := row.values.get(name))]
    numbers = [as_number(value) for _, value in present]
    known = [number for number in numbers if number is not None]
    if not present or (len({str(value) for _, value in present}) == 1 and len(present) == len(rows)):
        return None
    optional = any(name not in row.values for row in rows)
    if len(known) == len(present):
        return Column(name, edges=_edges(known, bins, tails), optional=optional)
    if len(known) > len(present) / 2:
        row, value = next(pair for pair, number in zip(present, numbers, strict=True) if number is None)
        raise DataError(
            f"{row.place}: column {name!r}: found {value!r}, expected a number as in most rows (empty, if unknown)"
        )
    commas = [value for _, value in present if isinstance(value, str) and DECIMAL_COMMA.fullmatch(value.strip())]
    if len(commas) + len(known) > len(present) / 2:
        raise DataError(
            f"{present[0][0].place}: column {name!r}: found {commas[0]!r}, and {len(commas)} values with a comma,"
            " expected a number: write decimal points (or leave it out with task.ignore)"
        )
    categories = sorted({str(value) for _, value in present})
    texts = {str(value) for (_, value), number in zip(present, numbers, strict=True) if number is None}
    dressed = [text for text in texts if DRESSED.fullmatch(text.strip())]
    if len(dressed) > MANY / 2 and len(dressed) + len(set(known)) > len(categories) / 2:
        raise DataError(
            f"{present[0][0].place}: column {name!r}: found {present[0][1]!r}, a number with a sign or separator,"
            " expected a plain number: write 1234.5 for $1,234.50 and 17 for 17% (or leave it out with task.ignore)"
        )
    if len(texts) <= FEW and len(set(known)) > MANY / 2:
        shown = " and ".join(map(repr, sorted(texts)))
        raise DataError(
            f"{present[0][0].place}: column {name!r}: found {shown} in {len(present) - len(known)} rows, expected a"
            f" number as in the {len(known)} others: leave it empty where it is unknown (or leave the column out with"
            " task.ignore)"
        )
    if len(categories) > MOST_CATEGORIES:
        raise DataError(
            f"{present[0][0].place}: column {name!r}: {len(categories)} different texts in {len(present)} rows, such as"
            f" {present[0][1]!r}, and at most {MOST_CATEGORIES} can be categories: leave it out with"
            f" --task tabular-classification -o task.ignore={name}"
        )
    return Column(name, categories=tuple(categories), optional=optional)


def _edges(values: Sequence[float], bins: int, tails: int = 0) -> tuple[float, ...]:
    """At most `bins` + 1 different quantiles, and `tails` at either end; a single value is given an edge beside it."""
    import numpy as np

    distinct = sorted(set(values))
    if len(distinct) > bins + 1:
        low = [0.5**halved / bins for halved in range(1, tails + 1)]
        shares = [*np.linspace(0, 1, bins + 1), *low, *(1 - share for share in low)]
        distinct = np.unique(np.quantile(np.asarray(values, dtype=np.float64), shares)).tolist()
    if len(distinct) == 1:
        return (distinct[0], distinct[0] + max(1.0, abs(distinct[0])))
    return tuple(distinct)
