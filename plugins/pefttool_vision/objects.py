"""The column `objects`: boxes of a row, with their categories, as the hub's detection sets and COCO have them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pefttool.toolkit.columns import describe
from pefttool_vision import pictures

OBJECT_COLUMNS = ("objects", "annotations")
#: Pixels by which a box may leave its picture: tools round outwards. It is cut off there.
SLACK = 1.0
#: EXIF's orientations from this one on exchange width and height.
FIRST_THAT_SWAPS_SIDES = 5


@dataclass(frozen=True)
class Thing:
    """One box, [left, top, width, height] in pixels. A `crowd` is a region of many that are not told apart."""

    bbox: tuple[float, float, float, float]
    category: str
    crowd: bool = False


def looks_like_objects(value: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(value.get("bbox"), Sequence) and isinstance(value.get("category"), Sequence)
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return is_list and bool(value) and all(isinstance(v, Mapping) and "bbox" in v and "category" in v for v in value)


def things(value: Any) -> list[Thing]:
    """The boxes of a value that `complaint` finds nothing wrong with."""
    return [Thing(tuple(map(float, box)), str(name), bool(crowd)) for box, name, crowd in _columns(value)]  # type: ignore[arg-type]


def reads(column: str, value: Any) -> list[str]:
    """What of such a column makes its boxes."""
    inside = column if isinstance(value, Mapping) else f"{column}[]"
    return [f"{inside}.{name}" for name in ("bbox", "category", "iscrowd")]


def _columns(value: Any) -> list[tuple[Any, Any, Any]]:
    if isinstance(value, Mapping):
        boxes, names = value["bbox"], value["category"]
        crowds = value.get("iscrowd") or [0] * len(boxes)
        return list(zip(boxes, names, crowds, strict=True))
    return [(v["bbox"], v["category"], v.get("iscrowd", 0)) for v in value]


def complaint(column: str, value: Any) -> str | None:
    """What is wrong with this value of the column, or None."""
    expected = f'expected {{"bbox": [[left, top, width, height], ...], "category": [...]}} in {column!r}'
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and not value:
        return None
    if not looks_like_objects(value):
        return f"found {describe(value)}, {expected}"
    try:
        columns = _columns(value)
    except (TypeError, ValueError):
        counts = {name: len(found) for name in ("bbox", "category", "iscrowd") if (found := value.get(name))}
        return f"column {column!r}: found {counts}, expected as many of each"
    for i, (box, name, _) in enumerate(columns, 1):
        problem = box_complaint(box)
        if problem is None and (not isinstance(name, str | int) or name == ""):
            problem = f"found category {describe(name)}, expected a class name or number"
        if problem is not None:
            return f"column {column!r}, box {i}: {problem}"
    return None


def box_complaint(box: Any) -> str | None:
    """What is wrong with one box, apart from its picture."""
    numbers = isinstance(box, Sequence) and not isinstance(box, str | bytes) and len(box) == 4
    if not numbers or not all(_is_number(x) for x in box):
        return f"found {describe(box)}, expected four numbers [left, top, width, height] in pixels"
    if box[2] <= 0 or box[3] <= 0:
        return f"found {describe(list(box))}, expected a width and a height above 0"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def outside(column: str, value: Any, width: int, height: int) -> str | None:
    """The first box that leaves a picture of this size, or None."""
    for i, thing in enumerate(things(value), 1):
        problem = box_outside(thing.bbox, width, height)
        if problem is not None:
            return f"column {column!r}, box {i}: {problem}"
    return None


def box_outside(box: Sequence[float], width: int, height: int) -> str | None:
    """How one box leaves a picture of this size, or None. One within the first pixel is in parts of the picture."""
    x, y, w, h = box
    if x + w <= 1 and y + h <= 1 and max(width, height) > 1:
        return (
            f"found {describe(list(box))}, less than a pixel, expected [left, top, width, height] in pixels: multiply"
            f" parts of the picture by its width and height ({width}, {height})"
        )
    if x < -SLACK or y < -SLACK or x + w > width + SLACK or y + h > height + SLACK:
        return (
            f"found {describe(list(box))}, expected a box inside the picture of {width} x {height} pixels"
            " ([left, top, width, height], in pixels of the file)"
        )
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return f"found {describe(list(box))}, of which nothing is in the picture"
    return None


def turned(path: str, said: Sequence[Any]) -> str | None:
    """Why boxes on this picture may be boxes on another view of it, or None; `said` are the width and height, if known.

    Viewers show a picture as its camera was held (EXIF), and boxes are in pixels of the file. Where the size that was
    written down is the stored one and not the shown one, the boxes were drawn on what is stored.
    """
    way = pictures.orientation(path)
    if way == 1:
        return None
    width, height = pictures.size(path)
    swaps = way >= FIRST_THAT_SWAPS_SIDES and width != height
    if swaps and tuple(said) == (width, height):
        return None
    name = os.path.basename(path)
    drawn = "the boxes are of the turned picture, by its size" if swaps and tuple(said) == (height, width) else ""
    ways = (
        f"turn the file, if the boxes were drawn on what viewers show (mogrify -auto-orient {name}), or remove the tag,"
        f" if on what is stored (exiftool -Orientation= {name})"
    )
    return (
        f"found {path}, which is stored otherwise than viewers show it (EXIF orientation {way}), expected to know which"
        f" one boxes are on{f' ({drawn})' if drawn else ''}: {ways}"
    )
