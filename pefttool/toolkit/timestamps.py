"""Times as data has them: numbers, or ISO dates. Other ways of writing a date do not say which number is the month."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime

__all__ = ["EXPECTED", "compact", "number", "seconds"]

#: What is said of any other text.
EXPECTED = "expected a number or an ISO date such as 2024-12-31 or 2024-12-31T23:59: convert it"
MONTH = re.compile(r"\d{4}-\d{2}")
#: Dates without separators, which are numbers, too: a year, a month, perhaps a day, an hour, minutes and seconds.
COMPACT = re.compile(r"((?:19|20)\d\d)(\d\d)(\d\d)?(\d\d)?(\d\d)?(\d\d)?")


def number(text: str) -> float | None:
    """The finite number that a text is, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def seconds(text: str) -> float | None:
    """Seconds since 1970 of an ISO date (UTC, unless it says otherwise; a month is its first day), or the number that
    it is; None for anything else. `UTC` may stand behind it."""
    value = number(text)
    if value is not None:
        return value
    try:
        moment = datetime.fromisoformat(f"{text}-01" if MONTH.fullmatch(text) else text.removesuffix(" UTC"))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def compact(texts: Sequence[str]) -> list[float] | None:
    """Seconds since 1970 of dates such as 20241231 or 2024123123, where all of these are and have one length; else
    None. As numbers they are in the same order, with a leap at the end of every month."""
    found = [_compact(text) if len(text) == len(texts[0]) else None for text in texts]
    return [moment for moment in found if moment is not None] if None not in found else None


def _compact(text: str) -> float | None:
    parts = COMPACT.fullmatch(text)
    if parts is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in parts.groups())
    day = day if parts[3] else 1
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    except ValueError:
        return None
