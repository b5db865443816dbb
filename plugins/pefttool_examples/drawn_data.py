"""SYNTHETIC pictures: streets that are drawn, not photographed, with a box around everything on them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pefttool_examples.vision_data import Labelled, write_coco

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

Box = tuple[float, float, float, float]
Draws = random.Random
SIDE = 224
#: Where the road ends, as a part of the picture's height.
HORIZON = 0.35
DRIVING_TRAIN, DRIVING_EVAL = 200, 80
MOST_THINGS = 5
#: A thing that an earlier one covers by more than this is not drawn.
MOST_COVERED = 0.25


def make_synthetic_driving(folder: Path) -> None:
    """Drawn streets with cars, trucks, pedestrians and signs as train.json and eval.json, in COCO's layout."""
    for part, count in (("train", DRIVING_TRAIN), ("eval", DRIVING_EVAL)):
        streets = [street(random.Random(f"{part} {i}"), f"{part}-{i:03d}") for i in range(count)]
        write_coco(folder, part, streets)


def street(draws: Draws, name: str) -> Labelled:
    """One street: things are smaller the nearer they are to the horizon, and the nearer ones cover the others."""
    from PIL import Image, ImageDraw, ImageFilter

    picture: Image.Image = Image.new("RGB", (SIDE, SIDE))
    draw = ImageDraw.Draw(picture)
    _background(draw, draws)
    boxes: list[tuple[Box, str]] = []
    # The nearest are placed first, so that it is known what they will cover; they are drawn last.
    feet = sorted((draws.uniform(HORIZON + 0.08, 0.97) for _ in range(draws.randint(1, MOST_THINGS))), reverse=True)
    placed = []
    for foot in feet:
        kind = draws.choice(sorted(THINGS))
        box = _place(draws, kind, foot)
        if all(_covered(box, other) <= MOST_COVERED for other, _ in boxes):
            boxes.append((box, kind))
            placed.append((box, kind, draws.random()))
    for box, kind, look in reversed(placed):
        THINGS[kind][1](draw, box, random.Random(look))
    if draws.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(draws.uniform(0.3, 1.0)))
    return Labelled(name, _noisy(picture, draws), tuple(boxes))


def _background(draw: ImageDraw, draws: Draws) -> None:
    light = draws.uniform(0.45, 1.1)

    def shade(*colour: int) -> tuple[int, int, int]:
        red, green, blue = (min(255, int(c * light)) for c in colour)
        return red, green, blue

    horizon = int(HORIZON * SIDE)
    draw.rectangle((0, 0, SIDE, horizon), fill=shade(150, 190, 230))
    x = 0
    while x < SIDE:  # houses and trees along the horizon
        width, height = draws.randint(12, 40), draws.randint(8, 50)
        colour = draws.choice([(120, 100, 90), (150, 140, 130), (60, 100, 60), (170, 120, 100)])
        draw.rectangle((x, horizon - height, x + width, horizon), fill=shade(*colour))
        x += width + draws.randint(0, 12)
    draw.rectangle((0, horizon, SIDE, SIDE), fill=shade(90, 130, 80))
    middle = SIDE / 2 + draws.randint(-30, 30)
    draw.polygon(
        [(middle - 14, horizon), (middle + 14, horizon), (SIDE + 40, SIDE), (-40, SIDE)], fill=shade(95, 95, 100)
    )
    for i in range(6):  # the lane's marks
        near, far = HORIZON + (1 - HORIZON) * ((i + 0.6) / 6) ** 2, HORIZON + (1 - HORIZON) * (i / 6) ** 2
        half = 1 + 4 * (near - HORIZON)
        draw.rectangle((middle - half, far * SIDE, middle + half, near * SIDE), fill=shade(230, 230, 220))


def _place(draws: Draws, kind: str, foot: float) -> Box:
    """A box whose lower edge is at `foot` (a part of the height), as large as things are there."""
    nearness = (foot - HORIZON) / (1 - HORIZON)
    (w, h), _ = THINGS[kind]
    scale = SIDE * (0.08 + 0.30 * nearness) * draws.uniform(0.85, 1.2)
    width, height = w * scale, min(h * scale, foot * SIDE - 1)
    spread = 1.0 if kind in ("pedestrian", "sign") else 0.35 + 0.65 * nearness
    x = SIDE / 2 + draws.uniform(-0.5, 0.5) * spread * (SIDE - width)
    left = min(max(x - width / 2, 0.0), SIDE - width)
    return left, foot * SIDE - height, width, height


def _covered(box: Box, other: Box) -> float:
    """The part of `box` that lies in `other`."""
    w = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    h = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(w, 0.0) * max(h, 0.0) / (box[2] * box[3])


def _noisy(picture: Image, draws: Draws) -> Image:
    import numpy as np
    from PIL import Image as images

    noise = np.random.default_rng(draws.randrange(2**32)).normal(0, draws.uniform(1, 8), (SIDE, SIDE, 3))
    values = np.asarray(picture, dtype=np.float64) + noise
    return images.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _colour(draws: Draws) -> tuple[int, int, int]:
    return draws.randint(20, 240), draws.randint(20, 240), draws.randint(20, 240)


def _part(box: Box, left: float, top: float, right: float, bottom: float) -> Box:
    """Corners of a part of the box, given as parts of its sides."""
    x, y, w, h = box
    return x + left * w, y + top * h, x + right * w, y + bottom * h


def _car(draw: ImageDraw, box: Box, draws: Draws) -> None:
    body = _colour(draws)
    draw.polygon(
        [(p[0], p[1]) for p in (_part(box, *c, *c) for c in ((0.2, 0), (0.8, 0), (1, 0.45), (0, 0.45)))], fill=body
    )
    draw.rectangle(_part(box, 0, 0.42, 1, 0.85), fill=body)
    draw.rectangle(_part(box, 0.26, 0.08, 0.74, 0.4), fill=(50, 60, 80))
    for side in (0.06, 0.74):
        draw.rectangle(_part(box, side, 0.5, side + 0.2, 0.64), fill=draws.choice([(250, 240, 180), (200, 30, 30)]))
        draw.rectangle(_part(box, side, 0.85, side + 0.2, 1), fill=(25, 25, 25))


def _truck(draw: ImageDraw, box: Box, draws: Draws) -> None:
    draw.rectangle(_part(box, 0, 0, 1, 0.88), fill=_colour(draws))
    draw.rectangle(_part(box, 0.1, 0.55, 0.9, 0.75), fill=(60, 70, 90))
    for side in (0.05, 0.75):
        draw.rectangle(_part(box, side, 0.88, side + 0.2, 1), fill=(20, 20, 20))


def _pedestrian(draw: ImageDraw, box: Box, draws: Draws) -> None:
    draw.ellipse(_part(box, 0.25, 0, 0.75, 0.2), fill=draws.choice([(230, 190, 160), (150, 100, 70), (90, 60, 45)]))
    draw.rectangle(_part(box, 0.1, 0.2, 0.9, 0.6), fill=_colour(draws))
    trousers = _colour(draws)
    draw.rectangle(_part(box, 0, 0.6, 0.42, 1), fill=trousers)
    draw.rectangle(_part(box, 0.58, 0.6, 1, 1), fill=trousers)


def _sign(draw: ImageDraw, box: Box, draws: Draws) -> None:
    draw.rectangle(_part(box, 0.44, 0.4, 0.56, 1), fill=(120, 120, 120))
    draw.ellipse(_part(box, 0, 0, 1, 0.5), fill=(200, 30, 30))
    draw.ellipse(_part(box, 0.18, 0.09, 0.82, 0.41), fill=draws.choice([(240, 240, 240), (240, 220, 60)]))


#: (width, height) beside a car's height of about a quarter of the picture when near, and how it is drawn.
THINGS: dict[str, tuple[tuple[float, float], Callable[[ImageDraw, Box, Draws], None]]] = {
    "car": ((1.1, 0.85), _car),
    "truck": ((1.2, 1.45), _truck),
    "pedestrian": ((0.36, 1.05), _pedestrian),
    "sign": ((0.5, 1.1), _sign),
}
