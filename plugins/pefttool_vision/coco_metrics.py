"""Average precision as COCO defines it, by its own library (pycocotools: field standard, kept, only numpy)."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pefttool_vision.objects import Thing

#: Up to so many classes have a metric of their own.
CLASSES_SHOWN = 20


def average_precision(
    truth: Sequence[Sequence[Thing]], found: Sequence[Sequence[Mapping[str, Any]]], labels: Sequence[str], most: int
) -> dict[str, float]:
    """`map` (mean over classes and over IoU 0.50 to 0.95), `map_50`, `map_75`, and `map_50 CLASS` for each class.

    `found` are predictions of each picture: `{"bbox": [x, y, w, h], "label": ..., "score": ...}`, of which the best
    `most` count. Crowds can be found or not, without loss. Classes that the truth does not have do not count: what is
    only of them is NaN.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    numbers = {label: i for i, label in enumerate(labels, 1)}
    boxes = [(i, thing) for i, things in enumerate(truth, 1) for thing in things]
    annotations = [
        {
            "id": n,
            "image_id": i,
            "category_id": numbers[thing.category],
            "bbox": list(thing.bbox),
            "area": thing.bbox[2] * thing.bbox[3],
            "iscrowd": int(thing.crowd),
        }
        for n, (i, thing) in enumerate(boxes, 1)
    ]
    results = [
        {"image_id": i, "category_id": numbers[p["label"]], "bbox": p["bbox"], "score": p["score"]}
        for i, predictions in enumerate(found, 1)
        for p in predictions
    ]
    names = ["map", "map_50", "map_75", *(f"map_50 {label}" for label in labels if len(labels) <= CLASSES_SHOWN)]
    if not results:
        there = {thing.category for things in truth for thing in things if not thing.crowd}
        some = dict.fromkeys(names[:3], 0.0 if there else math.nan)
        return {**some, **{name: 0.0 if name.removeprefix("map_50 ") in there else math.nan for name in names[3:]}}
    if not annotations:
        return dict.fromkeys(names, math.nan)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports on its progress
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(1, len(truth) + 1)],
            "categories": [{"id": number, "name": label} for label, number in numbers.items()],
            "annotations": annotations,
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(results), "bbox")
        judge.params.maxDets = [1, 10, most]
        judge.evaluate()
        judge.accumulate()
    # [IoU thresholds, recalls, classes, areas, maxDets], -1 where there is nothing to find
    precision = judge.eval["precision"][:, :, :, 0, -1]
    values = [_mean(precision), _mean(precision[0]), _mean(precision[5])]
    values += [_mean(precision[0, :, i]) for i in range(len(labels) if len(labels) <= CLASSES_SHOWN else 0)]
    return dict(zip(names, values, strict=True))


def _mean(precision: Any) -> float:
    there = precision[precision > -1]
    return float(there.mean()) if there.size else math.nan
