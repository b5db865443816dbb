"""Good rows of the vision tasks, and files of their formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

Rows = list[dict[str, Any]]
COLOURS = ("red", "green", "blue")


def drawn(path: Path, colour: str, size: tuple[int, int] = (28, 28), boxes: Rows | list[list[float]] = ()) -> str:
    """A grey picture with filled boxes ([x, y, w, h]) of one colour; its path."""
    picture = Image.new("RGB", size, "grey")
    draw = ImageDraw.Draw(picture)
    for x, y, w, h in boxes or [[4, 4, 12, 16]]:
        draw.rectangle((x, y, x + w - 1, y + h - 1), fill=colour)
    picture.save(path)
    return str(path)


def classified(folder: Path) -> Rows:
    sizes = [(28, 28), (40, 30), (20, 50)]
    return [
        {"image": drawn(folder / f"{i}.png", colour, size), "label": colour}
        for i, (colour, size) in enumerate(zip(COLOURS, sizes, strict=True))
    ]


def detected(folder: Path) -> Rows:
    """Pictures with one box, none and three."""
    given: list[tuple[str, list[list[float]]]] = [
        ("red", [[2, 3, 10, 12]]),
        ("grey", []),
        ("blue", [[0, 0, 6, 6], [10, 4, 15, 8], [4, 15, 8, 9]]),
    ]
    return [
        {
            "image": drawn(folder / f"{i}.png", colour, (30, 26), boxes or [[0, 0, 1, 1]]),
            "objects": {"bbox": boxes, "category": [colour] * len(boxes)},
        }
        for i, (colour, boxes) in enumerate(given)
    ]


def picture(path: Path) -> Rows:
    """What the format `images` makes of one."""
    return [{"image": str(path), "label": path.parent.name}]


def coco_file(path: Path) -> list[dict[str, Any]]:
    """Write a COCO file with two pictures beside it, and give its rows."""
    (path.parent / "images").mkdir(exist_ok=True)
    boxes: list[list[float]] = [[1, 2, 5, 6], [8, 8, 4.5, 4]]
    names = ("a b.png", "c.png")
    paths = [drawn(path.parent / "images" / name, "red", boxes=boxes) for name in names]
    document = {
        "info": {"description": 'a "quoted" text, with [brackets] and {braces}'},
        "images": [{"id": i, "file_name": name, "width": 28, "height": 28} for i, name in enumerate(names)],
        "annotations": [
            {"id": 10 + i, "image_id": 0, "category_id": 7, "bbox": box, "area": box[2] * box[3], "iscrowd": i}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": 7, "name": "cat"}],
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    return [
        {"image": paths[0], "objects": {"bbox": boxes, "category": ["cat", "cat"], "iscrowd": [0, 1]}},
        {"image": paths[1], "objects": {"bbox": [], "category": []}},
    ]
