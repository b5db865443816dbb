"""Hourly values with two gaps: windows beside those that NumPy cuts out of each stretch."""

import itertools
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from case_bench import Bench

HORIZON, SEASON = 6, 3
GAPS = {40: 32, 90: 5}


def check(bench: Bench) -> None:
    step = np.ones(150, dtype=int)
    step[0] = 0
    for place, hours in GAPS.items():
        step[place] = hours
    hours = np.cumsum(step)
    values = np.round(np.random.default_rng(0).normal(size=150), 6)
    start = datetime(2024, 1, 1)
    times = [(start + timedelta(hours=int(h))).isoformat() for h in hours]
    data = bench.folder / "flow.csv"
    data.write_text("time,flow\n" + "".join(f"{t},{v}\n" for t, v in zip(times, values, strict=True)))
    asked = ("--format", "series-long", "-o", f"task.prediction_length={HORIZON}", "-o", f"task.season={SEASON}")
    answer = bench.pefttool("data", "check", data, "--task", "series-forecasting", *asked)
    assert answer.code == 0, answer.text
    said = f"2 gaps in the time stamps of 1 series, the usual step is 1 h, the longest is 32 h after {times[39]} in"
    assert said in answer.text, answer.text
    assert "windows do not cross them" in answer.text, answer.text

    place_of = {value: place for place, value in enumerate(values.tolist())}
    assert len(place_of) == 150
    for split in (True, False):
        arranged = _arranged(data, split)
        cuts = [0, *GAPS, 150] if split else [0, 150]
        found = [[place_of[v] for v in w] for w in _windows((*arranged.train, *arranged.eval))]
        for window in found:
            steps = np.diff(hours[window])
            assert (np.diff(window) == 1).all()
            assert (steps == 1).all() or not split
        begin = 150 - max(HORIZON, round(150 * 0.2))
        futures = sorted(window[-HORIZON] for window in found)
        assert futures == sorted(_futures(cuts, begin))
        assert split or any((np.diff(hours[window]) > 1).any() for window in found)
    assert "data: 2 gaps" in " ".join(arranged.notices)


def _arranged(data: Any, split: bool) -> Any:
    from pefttool.config import registry
    from pefttool.data import rows
    from pefttool_series.forecasting import SeriesForecasting, SeriesForecastingOptions

    read = rows.read([data], registry.build(), "series-long").rows
    gaps: Any = "split" if split else "join"
    options = SeriesForecastingOptions(prediction_length=HORIZON, season=SEASON, gaps=gaps)
    return SeriesForecasting().arrange(read, None, 0.2, options)


def _windows(rows: Iterable[Any]) -> list[list[float]]:
    return [[*row.values["series"][0], *row.values["future"][0]] for row in rows]


def _futures(cuts: list[int], begin: int) -> list[int]:
    """Places at which futures start: backwards from the end of a stretch in training, forwards where held out."""
    starts, stride, shortest = [], 1, HORIZON
    for first, end in itertools.pairwise(cuts):
        starts += range(min(end, begin) - HORIZON, first + shortest - 1, -stride)
        starts += range(max(begin, first + shortest), end - HORIZON + 1, HORIZON)
    return starts
