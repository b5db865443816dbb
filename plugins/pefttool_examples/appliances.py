"""Currents that household appliances draw while they are switched on: PLAID, as sktime's package carries it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pefttool_examples.archives import Archive
from pefttool_examples.datasets import write_rows
from pefttool_examples.series import archive_rows, shuffled

SKTIME = Archive(
    "sktime==1.2.0",
    "sktime-1.2.0-py3-none-any.whl",
    "dbffc6731d2d683b668dceb5e2bbc5804bebc8446b4c580803a281684d90e4ae",
)
#: What the archive's classes are.
KINDS = (
    "air conditioner",
    "compact fluorescent lamp",
    "fan",
    "fridge",
    "hairdryer",
    "heater",
    "incandescent bulb",
    "laptop",
    "microwave",
    "vacuum cleaner",
    "washing machine",
)
#: These are new to the pretrained model; it knows the other seven.
NEW_KINDS = ("compact fluorescent lamp", "hairdryer", "incandescent bulb", "microwave")
#: Recordings of each new kind to train on.
RECORDINGS = 16
#: Moments of a recording, and how many of them before it is switched on, where it has as many.
LENGTH, BEFORE = 192, 16
#: Values over which the level before a moment and after it is taken.
LEVEL = 8


def make_appliances(folder: Path) -> None:
    """Sixteen recordings of each of four kinds, from the archive's training part; its test part is held out."""
    seen: dict[str, int] = {}
    train: list[dict[str, Any]] = []
    for series, kind in shuffled(recordings("TRAIN")):
        seen[kind] = seen.get(kind, 0) + 1
        if kind in NEW_KINDS and seen[kind] <= RECORDINGS:
            train.append({"series": [series], "label": kind})
    held_out = [{"series": [series], "label": kind} for series, kind in recordings("TEST") if kind in NEW_KINDS]
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "eval.jsonl", held_out)


def known_appliances() -> tuple[list[list[float]], list[str]]:
    """(series, kind) of every recording of the kinds that are not in `appliances`."""
    known = [(series, kind) for series, kind in recordings("TRAIN", "TEST") if kind not in NEW_KINDS]
    return [series for series, _ in known], [kind for _, kind in known]


def recordings(*parts: str) -> list[tuple[list[float], str]]:
    """(192 values from shortly before it is switched on, kind); what the archive has twice only once.

    The archive's amplitudes are in units that differ from one recording to another, by factors of up to 10,000 and
    more: here each is divided by its own largest.
    """
    chosen = {}
    for part in ("TRAIN", "TEST"):
        for channels, label in archive_rows("PLAID", SKTIME, (part,)):
            chosen.setdefault(tuple(channels[0]), (part, KINDS[int(label)]))
    return [(switched_on(list(values)), kind) for values, (part, kind) in chosen.items() if part in parts]


def switched_on(values: list[float]) -> list[float]:
    """`LENGTH` of the values from `BEFORE` before the largest rise, by the largest of all; a shorter recording begins
    with its first value repeated.
    """
    largest = max(abs(value) for value in values)
    levels = [sum(values[at : at + LEVEL]) for at in range(len(values) - LEVEL + 1)]
    rises = [after - before for before, after in zip(levels, levels[LEVEL:], strict=False)]
    rise = rises.index(max(rises))
    begin = max(0, min(rise + LEVEL - BEFORE, len(values) - LENGTH))
    window = [round(value / largest, 4) for value in values[begin : begin + LENGTH]]
    return [window[0]] * (LENGTH - len(window)) + window
