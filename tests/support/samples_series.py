"""Good rows of the series tasks, for the contract suite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

#: Values to forecast by default.
HORIZON = 24


def wave(length: int, period: float, phase: float = 0.0) -> list[float]:
    return [round(math.sin(2 * math.pi * i / period + phase), 4) for i in range(length)]


def classified(folder: Path) -> list[dict[str, Any]]:
    """Two channels each; the first row is as long as the tiny model's context, others shorter, one with a gap."""
    gap: list[float | None] = list(wave(20, 5))
    gap[3] = None
    return [
        {"series": [wave(32, 8), wave(32, 4)], "label": "fast"},
        {"series": [wave(12, 30), wave(12, 40)], "label": "slow"},
        {"series": [gap, wave(20, 3, 1.0)], "label": "fast"},
    ]


def windows(folder: Path) -> list[dict[str, Any]]:
    """A past, and the future to forecast; of different lengths, with gaps on both sides."""
    future: list[float | None] = list(wave(HORIZON, 7))
    future[0] = None
    past: list[float | None] = list(wave(30, 7))
    past[5] = None
    return [
        {"series": [wave(40, 8), wave(40, 16)], "future": [wave(HORIZON, 8), wave(HORIZON, 16)]},
        {"series": [past, wave(30, 9)], "future": [future, wave(HORIZON, 9)]},
        {"series": [wave(10, 5), [float(i) for i in range(10)]], "future": [wave(HORIZON, 5), [3.0] * HORIZON]},
    ]


#: Files of the series formats; below, their rows and the lines on which these start.
FILES = {
    "series-long": "id,time,load,heat,label\na,1,0.5,20,ok\na,2,,21,ok\nb,1,1.5,30,worn\nb,3,1.25,3e1,worn\n",
    "series-wide": "id,t0,t1,t2,label\nx,1,2.5,-3,ok\n\ny,4,,,worn\n",
    "ts": "# made up\n@problemName made-up\n@timeStamps false\n@univariate false\n@classLabel true up down\n@data\n"
    "1,2,3:4,5,?:up\n3,2:1,0.5:down\n",
}
LONG = (
    [
        {
            "series": [[0.5, None], [20.0, 21.0]],
            "channels": ["load", "heat"],
            "id": "a",
            "timestamps": ["1", "2"],
            "label": "ok",
        },
        {
            "series": [[1.5, 1.25], [30.0, 30.0]],
            "channels": ["load", "heat"],
            "id": "b",
            "timestamps": ["1", "3"],
            "label": "worn",
        },
    ],
    [2, 4],
)
WIDE = (
    [
        {"id": "x", "series": [[1.0, 2.5, -3.0]], "label": "ok"},
        {"id": "y", "series": [[4.0]], "label": "worn"},
    ],
    [2, 4],
)
TS = (
    [
        {"series": [[1.0, 2.0, 3.0], [4.0, 5.0, None]], "label": "up"},
        {"series": [[3.0, 2.0], [1.0, 0.5]], "label": "down"},
    ],
    [7, 8],
)
