"""A detector that does not look: the same boxes on every picture, where the training pictures mostly had theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from pefttool_vision import pictures
from pefttool_vision.coco_metrics import average_precision
from pefttool_vision.objects import Thing, things

MOST = 100


def constant_boxes(train: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]]) -> float:
    """mAP50 of boxes of each class's median size, half a box apart all over the picture, scored by how many of the
    training pictures have a box of the class there (an IoU of half or more). Pictures are all of one size."""
    width, height = pictures.size(str(train[0]["image"]))
    known = [things(row["objects"]) for row in train]
    labels = sorted({thing.category for boxes in known for thing in boxes})
    guesses = [guess for label in labels for guess in _guesses(known, label, width, height)]
    best = sorted(guesses, key=lambda guess: -guess["score"])[:MOST]
    truth = [things(row["objects"]) for row in held_out]
    return average_precision(truth, [best] * len(truth), labels, MOST)["map_50"]


def _guesses(known: Sequence[Sequence[Thing]], label: str, width: int, height: int) -> list[dict[str, Any]]:
    own = [[thing for thing in boxes if thing.category == label] for boxes in known]
    sizes = [thing.bbox[2:] for boxes in own for thing in boxes]
    w, h = median(size[0] for size in sizes), median(size[1] for size in sizes)
    found = []
    for top in _places(height, h):
        for left in _places(width, w):
            box = (left, top, w, h)
            hits = sum(any(_overlap(box, thing.bbox) >= 0.5 for thing in boxes) for boxes in own)
            found.append({"bbox": list(box), "label": label, "score": hits / len(known)})
    return found


def _places(length: float, side: float) -> list[float]:
    count = max(1, round(2 * (length - side) / side) + 1)
    return [i * (length - side) / max(1, count - 1) for i in range(count)]


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    w = max(0.0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return w * h / (a[2] * a[3] + b[2] * b[3] - w * h)
