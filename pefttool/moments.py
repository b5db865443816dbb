"""Times as data has them: numbers, or ISO dates. Other ways of writing a date do not say which number is the month."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

#: What is said of any other text.
EXPECTED = "expected a number or an ISO date such as 2024-12-31 or 2024-12-31T23:59: convert it"
MONTH = re.compile(r"\d{4}-\d{2}")


def number(text: str) -> float | None:
    """The finite number that a text is, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def seconds(text: str) -> float | None:
    """Seconds since 1970 of an ISO date (UTC, unless it says otherwise; a month is its first day), or the number that
    it is; None for anything else."""
    value = number(text)
    if value is not None:
        return value
    try:
        moment = datetime.fromisoformat(f"{text}-01" if MONTH.fullmatch(text) else text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
