"""Nothing of a row is dropped in silence: columns and fields that no task reads are named once, with a count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pefttool.api.task import Task
from pefttool.api.values import Row

#: Names that are listed; the rest are counted.
SHOWN = 10


def line(rows: Sequence[Row], task: Task, options: Any) -> str | None:
    """`not used: columns 'id', 'source'; 'messages[].weight' (12 rows)`, or None where all is used.

    The task is asked once for all rows that have the same columns and fields. What is empty is not there.
    """
    counts = Counter[Any]()
    example: dict[Any, Row] = {}
    for row in rows:
        kind = _shape(row.values)
        counts[kind] += 1
        example.setdefault(kind, row)
    unused = Counter[str]()
    for kind, row in example.items():
        reads = task.reads(row.values, options)
        if reads is None:
            return None
        for path in dict.fromkeys(unread(row.values, reads)):
            unused[path] += counts[kind]
    return _told(unused, len(rows)) if unused else None


def _told(unused: Mapping[str, int], rows: int) -> str:
    shown, more = list(unused)[:SHOWN], len(unused) - SHOWN
    everywhere = [repr(path) for path in shown if unused[path] == rows and not _nested(path)]
    parts = [f"column{'s' if len(everywhere) > 1 else ''} {', '.join(everywhere)}"] if everywhere else []
    parts += [f"{path!r} ({unused[path]} rows)" for path in shown if unused[path] < rows or _nested(path)]
    return f"not used: {'; '.join(parts)}{f'; and {more} more' if more > 0 else ''}"


def unread(values: Mapping[str, Any], reads: Iterable[str]) -> list[str]:
    """What of this row is not among `reads`: of what lies inside an unread column only the column."""
    named = set(reads)
    return list(_unread(values, named, {above for path in named for above in _above(path)}, ""))


def _unread(values: Mapping[str, Any], reads: Collection[str], entered: Collection[str], inside: str) -> Iterator[str]:
    for name, value in values.items():
        path = f"{inside}{name}"
        if _empty(value) or path in reads:
            continue
        if path not in entered:
            yield path
        elif isinstance(value, Mapping):
            yield from _unread(value, reads, entered, f"{path}.")
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, Mapping):
                    yield from _unread(item, reads, entered, f"{path}[].")


def _above(path: str) -> Iterator[str]:
    """`a` and `a[].b` of `a[].b.c`."""
    for at, character in enumerate(path):
        if character == ".":
            yield path[:at].removesuffix("[]")


def _nested(path: str) -> bool:
    return "." in path


def _shape(values: Mapping[str, Any]) -> Any:
    """Equal for rows with the same columns and fields, whatever their order inside lists."""
    if _FLAT.issuperset(map(type, values.values())) and "" not in values.values():
        return tuple(values)  # a million rows are looked at: most are as simple as that
    return tuple([name if type(v) in _FLAT else (name, _inner(v)) for name, v in values.items() if not _empty(v)])


#: Most values, which hold no fields.
_FLAT = frozenset((str, int, float, bool))


def _inner(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _shape(value)
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value[:2]):
        return frozenset(_shape(item) for item in value if isinstance(item, Mapping))
    return None


def _empty(value: Any) -> bool:
    return value is None or (type(value) is str and not value)
