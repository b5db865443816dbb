"""The real pictures among the example data: Fashion-MNIST, tree crowns from the air, cell nuclei."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from pefttool import DataError
from pefttool_examples.archives import Archive, Debian

if TYPE_CHECKING:
    from PIL.Image import Image

FASHION = Debian(
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
)
DEEPFOREST = Archive(
    "deepforest==2.1.0",
    "deepforest-2.1.0-py3-none-any.whl",
    "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
)
STARDIST = Archive(
    "stardist==0.9.2",
    "stardist-0.9.2-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "2316c0feb7bd5621e7a277cb3868df475c338943c591925c420ee3622c42f023",
)

FASHION_CLASSES = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_SIDE = 28
FASHION_TRAIN, FASHION_EVAL = 2_000, 1_000

#: The photographs that are dense with trees. A fourth and largest one is meadow for the most part.
CROWNS = ("2019_YELL_2_541000_4977000_image_crop", "OSBS_029", "SOAP_061")
CROWN_TILE = 140
#: Of every photograph the left part of this share is trained on, and the rest held out: no pixel is in both.
CROWNS_SHARE = 0.64
#: Of a box that a tile's edge cuts, so much must be inside for it to count there.
LEAST_PART = 0.4

NUCLEUS_TILE = 112
#: The left part that is trained on; the rest is held out.
NUCLEI_SHARE = 0.5625


def make_fashion_mnist(folder: Path) -> None:
    """A PNG for each picture in train/CLASS/ and eval/CLASS/: equally many of every class, chosen by a fixed seed."""
    from PIL import Image

    source = FASHION.folder() / "usr/share/datasets/fashion-mnist"
    for part, prefix, count in (("train", "train", FASHION_TRAIN), ("eval", "t10k", FASHION_EVAL)):
        pixels = gzip.decompress((source / f"{prefix}-images-idx3-ubyte.gz").read_bytes())[16:]
        labels = gzip.decompress((source / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())[8:]
        size = FASHION_SIDE * FASHION_SIDE
        for number, name in enumerate(FASHION_CLASSES):
            own = [i for i, label in enumerate(labels) if label == number]
            target = folder / part / name
            target.mkdir(parents=True)
            for i in sorted(random.Random(number).sample(own, count // len(FASHION_CLASSES))):
                content = pixels[i * size : (i + 1) * size]
                Image.frombytes("L", (FASHION_SIDE, FASHION_SIDE), content).save(target / f"{i:05d}.png")


@dataclass(frozen=True)
class Labelled:
    """A picture and its boxes: [left, top, width, height] in pixels, and a class."""

    name: str
    picture: Image
    boxes: tuple[tuple[tuple[float, float, float, float], str], ...]


def make_tree_crowns(folder: Path) -> None:
    """Tiles of 140 pixels of three aerial photographs as train.json and eval.json, in COCO's layout, and the tiles.

    The right part of every photograph is held out. Training tiles overlap by half.
    """
    with DEEPFOREST.opened() as archive:

        def photograph(name: str) -> Labelled:
            stem = f"deepforest/data/{name}"
            return Labelled(name, _picture(archive.read(f"{stem}.png")), _crowns(archive.read(f"{stem}.xml")))

        halves = [halved(photograph(name), CROWNS_SHARE) for name in CROWNS]
    for part, sides, step in (
        ("train", [left for left, _ in halves], CROWN_TILE // 2),
        ("eval", [right for _, right in halves], CROWN_TILE),
    ):
        tiles = [tile for side in sides for tile in tiled(side, CROWN_TILE, step)]
        write_coco(folder, part, [tile for tile in tiles if tile.boxes])


def halved(whole: Labelled, share: float) -> tuple[Labelled, Labelled]:
    """The left `share` of the picture, and the rest."""
    width, height = whole.picture.size
    column = round(width * share)
    left = crop(whole, 0, 0, column, height, f"{whole.name}-left")
    return left, crop(whole, column, 0, width - column, height, f"{whole.name}-right")


def _picture(content: bytes) -> Image:
    from PIL import Image

    return Image.open(io.BytesIO(content)).convert("RGB")


def _crowns(document: bytes) -> tuple[tuple[tuple[float, float, float, float], str], ...]:
    """Boxes of a Pascal VOC file. Living and dead trees, told apart in one of the photographs only, are trees."""
    found = []
    for thing in ElementTree.fromstring(document).findall("object"):
        corners = [float(thing.findtext(f"bndbox/{key}") or 0) for key in ("xmin", "ymin", "xmax", "ymax")]
        left, top, right, bottom = corners
        found.append(((left, top, right - left, bottom - top), "Tree"))
    return tuple(found)


def make_nuclei(folder: Path) -> None:
    """Tiles of 112 pixels of one fluorescence picture with 125 outlined nuclei: the left part to train, the right one
    held out. Training tiles overlap by half."""
    from PIL import Image

    with STARDIST.opened() as archive:
        picture = Image.open(io.BytesIO(archive.read("stardist/data/images/img2d.tif")))
        mask = Image.open(io.BytesIO(archive.read("stardist/data/images/mask2d.tif")))
    whole = Labelled("nuclei", _stretched(picture), _outlined(mask))
    left, right = halved(whole, NUCLEI_SHARE)
    for part, side, step in (("train", left, NUCLEUS_TILE // 2), ("eval", right, NUCLEUS_TILE)):
        write_coco(folder, part, [tile for tile in tiled(side, NUCLEUS_TILE, step) if tile.boxes])


def _stretched(picture: Image) -> Image:
    """12 bits of brightness to 8; the square root keeps dim nuclei visible beside bright ones."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture, dtype=np.float64)
    low, high = np.percentile(values, (1, 99.8))
    scaled = np.sqrt(np.clip((values - low) / (high - low), 0, 1))
    return Image.fromarray((255 * scaled).astype(np.uint8)).convert("RGB")


def _outlined(mask: Image) -> tuple[tuple[tuple[float, float, float, float], str], ...]:
    """The box around each number of the mask."""
    import numpy as np

    values = np.asarray(mask)
    found = []
    for number in np.unique(values)[1:]:
        rows, columns = np.nonzero(values == number)
        left, top = int(columns.min()), int(rows.min())
        found.append(((left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1), "nucleus"))
    return tuple(found)


def tiled(whole: Labelled, side: int, step: int | None = None) -> list[Labelled]:
    """Tiles that cover the picture, about `step` (default: `side`) apart: the last ones end where it ends."""
    width, height = whole.picture.size
    return [
        crop(whole, x, y, side, side, f"{whole.name}-{x}-{y}")
        for y in _starts(height, side, step or side)
        for x in _starts(width, side, step or side)
    ]


def _starts(length: int, side: int, step: int) -> list[int]:
    if length < side:
        raise DataError(f"a picture of {length} pixels has no tile of {side}")
    count = -(-(length - side) // step) + 1
    return [round(i * (length - side) / max(1, count - 1)) for i in range(count)]


def crop(whole: Labelled, x: int, y: int, width: int, height: int, name: str) -> Labelled:
    """A part of the picture, with the boxes of which enough is in it, cut off at its edges."""
    boxes = []
    for (left, top, w, h), label in whole.boxes:
        a, b = max(left - x, 0.0), max(top - y, 0.0)
        c, d = min(left - x + w, float(width)), min(top - y + h, float(height))
        if c > a and d > b and (c - a) * (d - b) >= LEAST_PART * w * h:
            boxes.append(((a, b, c - a, d - b), label))
    return Labelled(name, whole.picture.crop((x, y, x + width, y + height)), tuple(boxes))


def write_coco(folder: Path, part: str, pictures: Sequence[Labelled]) -> None:
    """`PART.json` in COCO's layout, and the pictures in images/ beside it."""
    (folder / "images").mkdir(exist_ok=True)
    labels = sorted({label for picture in pictures for _, label in picture.boxes})
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, labelled in enumerate(pictures, 1):
        width, height = labelled.picture.size
        name = f"{labelled.name}.png"
        labelled.picture.save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for box, label in labelled.boxes:
            area, category = box[2] * box[3], labels.index(label) + 1
            known = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": 0}
            annotations.append({**known, "bbox": list(box), "area": area})
    categories = [{"id": i, "name": label} for i, label in enumerate(labels, 1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{part}.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
