"""Gaps in time stamps: where a list of values is no longer a series of evenly spaced ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pefttool import Caution, Row
from pefttool.toolkit import timestamps
from pefttool_series.reading import TIMES

#: A step of so many times the usual one is a gap: a missing value makes two, and months differ by less.
LONG = 1.5
#: Where more of the steps than this are long, that is how the series is: days without weekends, or no grid at all.
MOST = 0.1
UNITS = (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0), ("s", 1.0))


@dataclass(frozen=True)
class Steps:
    """What the time stamps of a series say.

    after       places of the values that follow a gap
    usual       the median step, in seconds, or in units of the numbers (`dates` is false)
    longest     the longest step, and the time after which it comes
    uneven      steps that are more than half longer or shorter than the usual one, where they are no gaps
    count       all steps
    """

    after: tuple[int, ...]
    usual: float
    longest: float
    before: str
    uneven: int
    count: int
    dates: bool

    def shown(self, step: float) -> str:
        """A step for people: `32 h`; numbers have no unit."""
        if not self.dates:
            return f"{step:g}"
        unit, seconds = next((u for u in UNITS if step >= 2 * u[1] or step == u[1]), UNITS[-1])
        return f"{step / seconds:.3g} {unit}"


def complaint(values: Mapping[str, Any], length: int) -> str | None:
    """What is wrong with the column of time stamps, if there is one: another number of them than of values."""
    times = values.get(TIMES)
    if isinstance(times, list | tuple) and len(times) != length:
        return f"column {TIMES!r}: found {len(times)} times, expected {length}, one for each value"
    return None


def steps(values: Mapping[str, Any]) -> Steps | None:
    """Of a row's time stamps; None where there are none, too few, or some that are no times in order."""
    times = values.get(TIMES)
    if not isinstance(times, list | tuple) or len(times) < 3:
        return None
    texts = list(map(str, times))
    dates = timestamps.compact(texts)
    found = [timestamps.seconds(text) for text in texts] if dates is None else dates
    known = [moment for moment in found if moment is not None]
    each = [after - before for before, after in itertools.pairwise(known)]
    if len(known) < len(found) or min(each) <= 0:
        return None
    usual = median(each)
    long = [i for i, step in enumerate(each) if step > LONG * usual]
    uneven = sum(not usual / LONG <= step <= LONG * usual for step in each)
    if len(long) > MOST * len(each):
        long = []
    at = max(range(len(each)), key=each.__getitem__)
    after = tuple(i + 1 for i in long)
    dated = dates is not None or timestamps.number(texts[0]) is None
    return Steps(after, usual, each[at], texts[at], uneven - len(long), len(each), dated)


def stretches(values: Mapping[str, Any], length: int) -> list[tuple[int, int]]:
    """(begin, end) of the values between gaps, in their order; all of them where there is no gap."""
    found = steps(values)
    cuts = (0, *(found.after if found is not None else ()), length)
    return [(begin, end) for begin, end in itertools.pairwise(cuts) if begin < end]


def told(rows: Sequence[Row], split: bool) -> list[str]:
    """What a user should read of the time stamps of these rows."""
    known = [(row, found) for row in rows if (found := steps(row.values)) is not None]
    notices = []
    broken = [(row, found) for row, found in known if found.after]
    if broken:
        count = sum(len(found.after) for _, found in broken)
        row, worst = max(broken, key=lambda pair: pair[1].longest / pair[1].usual)
        size = f"the longest is {worst.shown(worst.longest)} after {worst.before} in {row.place}"
        what = f"{count} gaps in the time stamps of {len(broken)} series, the usual step is {worst.shown(worst.usual)}"
        then = (
            "windows do not cross them (-o task.gaps=join has them cross)"
            if split
            else "windows cross them as if values were evenly spaced (task.gaps=join)"
        )
        text = f"data: {what}, {size}: {then}"
        notices.append(text if split else Caution(text))
    uneven = [(row, found) for row, found in known if found.uneven]
    if uneven:
        row, worst = max(uneven, key=lambda pair: pair[1].uneven / pair[1].count)
        what = f"{worst.uneven} of {worst.count} steps between time stamps are not the usual {worst.shown(worst.usual)}"
        where = f"in {row.place}" + (f" and {len(uneven) - 1} more series" if len(uneven) > 1 else "")
        notices.append(
            Caution(f"data: {what} {where}: values count as evenly spaced, in their order, and so does task.season")
        )
    unread = [row for row in rows if TIMES in row.values and steps(row.values) is None and _several(row)]
    if unread:
        what = f"the time stamps of {len(unread)} series are no times that increase, such as {unread[0].place}"
        notices.append(Caution(f"data: {what}: gaps are not looked for; {timestamps.EXPECTED}"))
    return notices


def _several(row: Row) -> bool:
    times = row.values[TIMES]
    return isinstance(times, list | tuple) and len(times) > 2
