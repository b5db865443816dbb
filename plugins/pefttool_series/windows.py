"""Long series as windows to learn from and to judge by: a past and the values that follow it.

Split by time, never at random: windows overlap, so that a random split would show in training what is judged later. No
window crosses a gap in the time stamps, unless that is asked for: a season would no longer be where it is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pefttool import Arranged, Row
from pefttool_series import gaps
from pefttool_series.reading import TIMES, channels


@dataclass(frozen=True)
class Cut:
    """How series are cut: `horizon` values follow a past of `shortest` to `longest`; windows start `stride` apart.

    `split`: each stretch between gaps in the time stamps is cut by itself.
    """

    column: str
    future: str
    horizon: int
    shortest: int
    longest: int
    stride: int
    split: bool = True

    def fits(self, length: int) -> bool:
        return length >= self.shortest + self.horizon

    def stretches(self, values: Mapping[str, Any]) -> list[tuple[int, int]]:
        """(begin, end) of what a window may lie in."""
        length = len(channels(values[self.column])[0])
        return gaps.stretches(values, length) if self.split else [(0, length)]

    def fits_before(self, row: Row, end: int) -> bool:
        """Whether a window lies before value `end`."""
        return any(self.fits(min(last, end) - first) for first, last in self.stretches(row.values))

    def window(self, row: Row, start: int, earliest: int = 0) -> Row:
        """The window of a series whose future begins at value `start`, and its past at `earliest` or later."""
        series = channels(row.values[self.column])
        past = [list(channel[max(earliest, start - self.longest) : start]) for channel in series]
        future = [list(channel[start : start + self.horizon]) for channel in series]
        values = {k: v for k, v in row.values.items() if k != TIMES}
        return Row({**values, self.column: past, self.future: future}, row.file, row.line)

    def training(self, row: Row, end: int) -> Iterator[Row]:
        """Windows of which everything lies before value `end`; the last one of a stretch ends where it does."""
        for begin, stretch_end in self.stretches(row.values):
            last = min(stretch_end, end) - self.horizon
            first = begin + self.shortest
            first += (last - first) % self.stride
            yield from (self.window(row, start, begin) for start in range(first, last + 1, self.stride))

    def held_out(self, row: Row, begin: int) -> Iterator[Row]:
        """Windows whose futures lie one behind another from value `begin` on; their pasts may lie before it."""
        for stretch, end in self.stretches(row.values):
            starts = range(max(begin, stretch + self.shortest), end - self.horizon + 1, self.horizon)
            yield from (self.window(row, start, stretch) for start in starts)


def arrange(train: Sequence[Row], held_out: Sequence[Row] | None, fraction: float, cut: Cut) -> Arranged:
    """Windows of the training rows, and of the held-out rows or, without any, of the end of each training row.

    Rows that have a future of their own are windows already; without held-out rows the last ones are held out.
    """
    windows, series = _apart(train, cut)
    if held_out is not None:
        own, others = _apart(held_out, cut)
        trained = [w for row in series for w in cut.training(row, _length(row, cut))]
        judged = [w for row in others for w in cut.held_out(row, 0)]
        notices = (*_notices(trained, judged, None, 0, cut), *gaps.told((*series, *others), cut.split))
        return Arranged((*windows, *trained), (*own, *judged), notices)
    trained, judged = [], []
    short = 0
    for row in series:
        length = _length(row, cut)
        end = length - max(cut.horizon, round(length * fraction))
        if not cut.fits_before(row, end):  # nothing would be left to learn from: all of it is trained on
            short += 1
            end = length
        trained += cut.training(row, end)
        judged += cut.held_out(row, end)
    last = max(1, round(len(windows) * fraction)) if windows and not judged else 0
    notices = (*_notices(trained, judged, fraction if series else None, short, cut), *gaps.told(series, cut.split))
    if last:
        notices = (*notices, f"data: the last {last} of {len(windows)} windows are held out, in the order of the file")
    split = len(windows) - last
    return Arranged((*windows[:split], *trained), (*windows[split:], *judged), notices)


def _apart(rows: Sequence[Row], cut: Cut) -> tuple[list[Row], list[Row]]:
    """(rows that are windows, rows that are long series)."""
    return [r for r in rows if cut.future in r.values], [r for r in rows if cut.future not in r.values]


def _length(row: Row, cut: Cut) -> int:
    return len(channels(row.values[cut.column])[0])


def _notices(
    trained: Sequence[Row], judged: Sequence[Row], fraction: float | None, short: int, cut: Cut
) -> tuple[str, ...]:
    if not trained and not judged:
        return ()
    made = f"data: {len(trained)} windows to train on and {len(judged)} held out, of {cut.horizon} values to forecast"
    if fraction is None:
        return (made,)
    how = f"{made}: split by time, all that is held out lies in the last {fraction:.0%} of its series"
    if not short:
        return (how,)
    return (how, f"data: {short} series are too short for windows on both sides, and are trained on as a whole")
