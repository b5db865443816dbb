"""Light augmentation whose draws are the run's seed, the epoch and the picture's own: the same again when resumed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

Augmentation = Literal["flip", "crop"]
#: A random crop keeps at least this share of both sides.
SMALLEST_CROP = 0.85


def augment(picture: Image, kinds: Sequence[Augmentation], seed: int, epoch: int, name: str) -> Image:
    """The picture mirrored (`flip`, every other time) and cropped (`crop`), as the draw for this row has it."""
    from PIL import Image as pillow

    draws = random.Random(f"{seed} {epoch} {name}")
    if "flip" in kinds and draws.random() < 0.5:
        picture = picture.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)
    if "crop" in kinds:
        width, height = picture.size
        share = draws.uniform(SMALLEST_CROP, 1.0)
        w, h = max(1, round(width * share)), max(1, round(height * share))
        x, y = draws.randint(0, width - w), draws.randint(0, height - h)
        picture = picture.crop((x, y, x + w, y + h))
    return picture
