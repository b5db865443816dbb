"""JSON that every reader takes: Python writes NaN and infinities as words that the format does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from datetime import date, datetime, time
from typing import Any

#: Bytes that are written out; of more, only how many there are.
SHOWN = 32
#: Kinds of NumPy's dates and durations, of which `tolist` makes numbers.
TIMES = ("m", "M")


def dumps(value: Any, indent: int | None = None) -> str:
    """`value` as JSON: null where a number is not finite, text where JSON has no such value (dates, decimals, bytes).

    Columns of data hold anything, and nothing that is to be written down may fail for one.
    """
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # half a surrogate pair is no UTF-8


def plain(value: Any) -> Any:
    """`value` of what JSON has: mappings, lists, text, finite numbers, booleans, null."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else text(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Set):
        return sorted((plain(inner) for inner in value), key=str)
    to_python = getattr(value, "tolist", None)  # arrays, tensors, and the numbers that they are made of
    if callable(to_python) and getattr(getattr(value, "dtype", None), "kind", "") not in TIMES:
        inner = to_python()
        return text(value) if type(inner) is type(value) else plain(inner)
    return text(value)


def text(value: Any) -> str:
    """A value as text that tells it from others: ISO 8601 for times, hexadecimal digits for bytes."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex() if len(value) <= SHOWN else f"{len(value)} bytes"
    return str(value)
