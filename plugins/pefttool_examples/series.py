"""Series: real ones from aeon's archive data, and simulated machines and vehicles, named synthetic wherever they go."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool import DataError
from pefttool_examples.archives import Archive
from pefttool_examples.datasets import write_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

AEON = Archive(
    "aeon==1.6.0",
    "aeon-1.6.0-py3-none-any.whl",
    "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409",
)
#: Of the nine speakers these are known to the pretrained model; the others are new.
KNOWN_SPEAKERS = 5
#: Recordings of each new speaker to train on; all others are held out.
RECORDINGS = 2
#: Hours of a day that a forecast looks at, and days to train on.
MORNING, SUMMER_DAYS = 16, 16
WINTER, SUMMER = "1", "2"


def archive_rows(
    name: str, archive: Archive = AEON, parts: tuple[str, ...] = ("TRAIN", "TEST")
) -> list[tuple[list[list[float]], str]]:
    """(channels, class) of every series of a data set in aeon's package or sktime's, training part first."""
    rows = []
    package = archive.pin.partition("==")[0]
    for part in parts:
        text = archive.read(f"{package}/datasets/data/{name}/{name}_{part}.ts").decode("utf-8")
        marker = next((at for at in (text.find("@data"), text.find("@DATA")) if at >= 0), None)
        if marker is None:
            raise DataError(f"{name}_{part}.ts has no @data: is it the version of {package} that was pinned?")
        for line in text[marker:].splitlines()[1:]:
            *dimensions, label = line.strip().split(":")
            if dimensions:
                rows.append(([[float(v) for v in d.split(",")] for d in dimensions], label))
    return rows


def make_voices(folder: Path) -> None:
    """Two recordings of each of four speakers to train on, 255 held out: twelve channels, 7 to 29 moments each."""
    new = [(series, label) for series, label in archive_rows("JapaneseVowels") if int(label) > KNOWN_SPEAKERS]
    seen: dict[str, int] = {}
    train: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for series, label in shuffled(new):
        seen[label] = seen.get(label, 0) + 1
        part = train if seen[label] <= RECORDINGS else held_out
        part.append({"series": series, "label": f"speaker {label}"})
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "eval.jsonl", held_out)


def known_voices() -> tuple[list[list[list[float]]], list[int]]:
    """(series, speaker from 0) of the speakers that are not in `voices`."""
    rows = [(series, int(label) - 1) for series, label in archive_rows("JapaneseVowels")]
    known = [(series, label) for series, label in rows if label < KNOWN_SPEAKERS]
    return [series for series, _ in known], [label for _, label in known]


def make_power_demand(folder: Path) -> None:
    """Days from April to September: 16 hours of demand, and the 8 that follow; 16 days to train on, 533 held out."""
    days = [day(series[0]) for series, label in shuffled(archive_rows("ItalyPowerDemand")) if label == SUMMER]
    write_rows(folder / "train.jsonl", days[:SUMMER_DAYS])
    write_rows(folder / "eval.jsonl", days[SUMMER_DAYS:])


def winter_days() -> list[list[float]]:
    """The 24 hours of each day from October to March."""
    return [series[0] for series, label in archive_rows("ItalyPowerDemand") if label == WINTER]


def day(hours: list[float]) -> dict[str, Any]:
    return {"series": [hours[:MORNING]], "future": [hours[MORNING:]]}


def make_degradation(folder: Path) -> None:
    """SYNTHETIC machines of a new fleet: 24 windows to train on, 600 held out."""
    windows = list(machines(FLEET_B, 312, seed=11))
    write_rows(folder / "train.jsonl", windows[:24])
    write_rows(folder / "eval.jsonl", windows[24:])


#: How much load and wear show in each of four sensors, and how noisy these are.
FLEET_A = {"load": (1.0, 0.6, 0.3, 0.8), "wear": (2.5, 2.0, -2.0, 1.5), "noise": 0.5}
FLEET_B = {"load": (0.4, 1.2, 0.9, 0.2), "wear": (1.6, 1.0, -1.2, 2.0), "noise": 0.7}
WINDOW, WARNING = 64, 30


def machines(fleet: dict[str, Any], count: int, seed: int) -> Iterator[dict[str, Any]]:
    """SYNTHETIC run-to-failure machines, two windows of 64 cycles of each: one ends in the last 30 cycles before the
    failure ("fails"), one earlier ("runs"). Four sensors show load, which changes by steps, wear, which grows
    exponentially, and noise.
    """
    import numpy as np

    draws = np.random.RandomState(seed)
    for number in range(count):
        life = int(draws.randint(160, 320))
        sensors = _sensors(fleet, life, draws)
        late = life - int(draws.randint(1, WARNING + 1))
        early = int(draws.randint(WINDOW, life - 2 * WARNING))
        ends = [(late, "fails"), (early, "runs")]
        for end, label in ends if draws.rand() < 0.5 else ends[::-1]:
            series = np.round(sensors[:, end - WINDOW : end], 3).tolist()
            yield {"series": series, "label": label, "machine": number}


def _sensors(fleet: dict[str, Any], life: int, draws: Any) -> Floats:
    """`[4, life]`."""
    import numpy as np

    cycles = np.arange(life)
    wear = np.expm1(5 * cycles / life) / math.expm1(5)
    changes = np.cumsum(draws.rand(life) < 0.04)
    load = draws.choice([0.0, 1.0, 2.0], size=changes[-1] + 1)[changes]
    noise = draws.randn(4, life) * fleet["noise"]
    offset = 0.4 * draws.randn(4, 1)
    loads, wears = (np.array(fleet[kind])[:, None] for kind in ("load", "wear"))
    found: Floats = offset + loads * load + wears * wear + noise
    return found


#: Velocities a second, and how many are seen and to be forecast.
RATE, PAST, AHEAD = 5, 32, 16
COUNTRY = {"speed": (14.0, 25.0), "turns": (0.02, 0.12), "every": 60}
TOWN = {"speed": (5.0, 14.0), "turns": (0.1, 0.4), "every": 30}


def make_trajectories(folder: Path) -> None:
    """SYNTHETIC vehicles in a town: their velocities for 6.4 seconds, and for the 3.2 that follow."""
    windows = list(vehicles(TOWN, 800, seed=21))
    write_rows(folder / "train.jsonl", windows[:200])
    write_rows(folder / "eval.jsonl", windows[200:])


def vehicles(road: dict[str, Any], count: int, seed: int) -> Iterator[dict[str, Any]]:
    """SYNTHETIC vehicles that steer into turns and out of them again: velocity to the east and to the north in m/s, as
    positions with an error of 2 cm give it.
    """
    import numpy as np

    draws = np.random.RandomState(seed)
    for _ in range(count):
        velocity = np.round(RATE * np.diff(_drive(road, PAST + AHEAD + 1, draws)), 3)
        yield {"series": velocity[:, :PAST].tolist(), "future": velocity[:, PAST:].tolist()}


def _drive(road: dict[str, Any], length: int, draws: Any) -> Floats:
    """`[2, length]`: a kinematic model; the yaw rate follows what the driver wants with a delay."""
    import numpy as np

    heading, speed = draws.uniform(0, 2 * math.pi), draws.uniform(*road["speed"])
    yaw = wanted = 0.0
    at = np.zeros(2)
    places = []
    for step in range(length + road["every"]):
        if step % road["every"] == 0:
            wanted = draws.choice([0.0, -1.0, 1.0]) * draws.uniform(*road["turns"])
        yaw += 0.25 * (wanted - yaw)
        speed = float(np.clip(speed + 0.15 * draws.randn() - 2.0 * abs(yaw) / RATE, *road["speed"]))
        heading += yaw / RATE
        at = at + speed / RATE * np.array([math.cos(heading), math.sin(heading)])
        places.append(at + 0.02 * draws.randn(2))
    begin = int(draws.randint(0, road["every"]))
    path: Floats = np.array(places[begin : begin + length]).T
    return path


def shuffled(rows: list[Any]) -> list[Any]:
    """The rows in an order of no meaning, the same every time."""
    import random

    order = list(rows)
    random.Random(0).shuffle(order)
    return order
