"""Names of classes: in which order a model has them, and what is said of one that it does not have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pefttool.api.errors import DataError
from pefttool.api.values import Caution, Row

__all__ = ["Numbered", "in_order", "listed", "name_of", "number", "numbers", "stands_for_nothing"]

#: Names that an error lists.
SHOWN = 10
#: What programs write for a missing value.
NOTHING = frozenset(
    ("NaN", "nan", "NAN", "NULL", "Null", "null", "None", "NA", "N/A", "n/a", "<NA>", "#N/A", "NaT", "\\N")
)


class Numbered(str):
    """The name of a class to which the file gives a number, too: that orders the classes."""

    __slots__ = ("number",)

    def __new__(cls, name: str, number: int) -> Numbered:
        made = super().__new__(cls, name)
        made.number = number
        return made

    number: int


def name_of(value: object) -> str:
    """A value as the name of a class, its number kept."""
    return value if isinstance(value, str) else str(value)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once: by the numbers that their file gives them, else, where all are whole numbers, by their values,
    else sorted."""
    found = sorted(set(names))
    numbered = [name for name in found if isinstance(name, Numbered)]
    if len(numbered) == len(found):
        return tuple(map(str, sorted(numbered, key=lambda name: name.number)))
    numeric = all(name.removeprefix("-").isdecimal() for name in found)
    return tuple(sorted(found, key=int) if numeric else found)


def listed(names: Sequence[str]) -> str:
    """The first of them, for an error."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def alike(names: Sequence[str]) -> list[str]:
    """A warning where names differ in case or in the spaces around them alone: most likely one class is meant."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.strip().casefold(), []).append(name)
    twins = [group for group in groups.values() if len(group) > 1]
    if not twins:
        return []
    more = f" and {len(twins) - 1} more" if len(twins) > 1 else ""
    shown = " and ".join(map(repr, twins[0]))
    return [Caution(f"classes {shown}{more} differ in spaces or capitals alone: mend the labels if one class is meant")]


def absent(names: Sequence[str]) -> list[str]:
    """A warning where a class is called as programs write that a value is missing."""
    found = [name for name in names if stands_for_nothing(name)]
    if not found:
        return []
    return [
        Caution(
            f"class {' and '.join(map(repr, found))}: programs write a missing value like this: leave such rows"
            " out, unless a class is called so"
        )
    ]


def stands_for_nothing(text: str) -> bool:
    """Whether a text is all that pandas, R, Excel, MySQL or Python write where there is none. `none` and `na` in small
    letters are words."""
    return text.strip() in NOTHING


def number(name: str, known: Sequence[str], row: Row) -> int:
    """The number of a row's class. Raises DataError for one that the training rows did not have."""
    if name not in known:
        complaint = f"class {name!r} is not among the training rows' ({listed(known)})"
        raise DataError(f"{row.place}: {complaint}: mend it, remove the row, or train with rows of this class")
    return known.index(name)


def numbers(names: Iterable[str], known: Sequence[str], row: Row) -> list[int]:
    """`number` of each."""
    return [number(name, known, row) for name in names]
