"""COCO annotation files: `images`, `annotations` and `categories` in one JSON object; a row is a picture.

A picture's place is its number in `images`; every complaint about a box names the annotation's id and its picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pefttool import DataError, DataFormat, DataProblem, Row
from pefttool.toolkit.columns import describe
from pefttool_vision import pictures
from pefttool_vision.json_head import top_level
from pefttool_vision.objects import box_complaint, box_outside, turned

PARTS = ("images", "annotations", "categories")
#: What else such a file may hold at its top.
MORE = ("info", "licenses", "type", "videos")
#: Where the pictures may lie, beside the file, if `file_name` is not relative to the file itself.
FOLDERS = (".", "images")
#: Problems of one picture that are told; the rest are counted.
SHOWN = 5


class Coco(DataFormat):
    """COCO boxes: a row for each picture, with its path in `image` and its boxes and categories in `objects`."""

    name = "coco"

    def sniff(self, path: Path) -> str | None:
        if path.suffix.lower() != ".json":
            return None
        seen = top_level(path)
        if any(seen.get(part) == "[" for part in PARTS) and set(seen) <= {*PARTS, *MORE}:
            return "an object with images, annotations or categories"
        return None

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        document = _load(path)
        images, annotations = document["images"], document["annotations"]
        names = _categories(path, document["categories"], annotations)
        problems: dict[int, list[str]] = {number: [] for number in range(1, len(images) + 1)}
        numbers: dict[Any, int] = {}
        for number, image in enumerate(images, 1):
            problem = _image_complaint(image, numbers)
            if problem is not None:
                problems[number].append(problem)
            else:
                numbers[image["id"]] = number
        usable = set(numbers.values())
        boxes: dict[int, dict[int, Mapping[str, Any]]] = {number: {} for number in problems}  # by their own numbers
        strays: list[DataProblem] = []
        seen: dict[Any, int] = {}
        for at, annotation in enumerate(annotations, 1):
            picture, problem = _annotation_complaint(annotation, at, numbers, names, seen)
            if picture is None:
                strays.append(DataProblem(str(path), len(images) + 1, str(problem)))
            elif problem is None:
                boxes[picture][at] = annotation
            else:
                problems[picture].append(f"{_who(annotation, at)} of {_picture(images[picture - 1])}: {problem}")
        for number, image in enumerate(images, 1):
            found = _file(path, image) if number in usable else None
            if number in usable:
                problems[number] += _picture_complaints(image, found, boxes[number])
            if problems[number] or found is None:
                yield DataProblem(str(path), number, _together(problems[number]))
            else:
                yield _row(path, number, found, image, list(boxes[number].values()), names)
        yield from strays


def _load(path: Path) -> Mapping[str, Any]:
    try:
        document: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: {error}; expected a COCO file, one JSON object with {', '.join(PARTS)}: mend it"
        ) from error
    for part in PARTS:
        if not isinstance(document, dict) or not isinstance(document.get(part), list):
            seen = describe(document.get(part)) if isinstance(document, dict) else "no JSON object"
            raise DataError(
                f"{path}: found {seen} for {part!r}, expected a list of objects: is this a COCO file?"
                " Name another data.format, or mend it"
            )
    found: Mapping[str, Any] = document
    return found


def _categories(path: Path, categories: Sequence[Any], annotations: Sequence[Any]) -> dict[Any, str]:
    """Names by id. Two that boxes have may not share a name; a group that none has may be called as its only class."""
    used = {a["category_id"] for a in annotations if isinstance(a, dict) and _is_id(a.get("category_id"))}
    ids: dict[str, Any] = {}
    names: dict[Any, str] = {}
    for number, category in enumerate(categories, 1):
        if (
            not isinstance(category, dict)
            or not _is_id(category.get("id"))
            or not isinstance(category.get("name"), str)
        ):
            message = f"category number {number}: found {describe(category)}, expected an object with 'id' and 'name'"
            raise DataError(f"{path}: {message}; mend it")
        if category["id"] in names:
            raise DataError(f"{path}: category id {category['id']} occurs twice: give each an id of its own")
        names[category["id"]] = category["name"]
        if category["id"] in used and ids.setdefault(category["name"], category["id"]) != category["id"]:
            both = f"category ids {ids[category['name']]} and {category['id']} are both called {category['name']!r}"
            raise DataError(f"{path}: {both}, and boxes have either: give each a name of its own, or boxes one id")
    return names


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    """Whether this says how wide or high a picture is; tools that do not know write 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _image_complaint(image: Any, known: Mapping[Any, int]) -> str | None:
    if not isinstance(image, dict) or not _is_id(image.get("id")):
        return f"found {describe(image)} among 'images', expected an object with 'id' and 'file_name'"
    if image["id"] in known:
        return f"image id {image['id']} is image number {known[image['id']]}, too: give each an id of its own"
    if not isinstance(image.get("file_name"), str) or not image["file_name"].strip() or "\0" in image["file_name"]:
        return f"image id {image['id']}: found file_name {describe(image.get('file_name'))}, expected a path"
    return None


def _who(annotation: Any, at: int) -> str:
    named = isinstance(annotation, dict) and _is_id(annotation.get("id"))
    return f"annotation id {annotation['id']}" if named else f"annotation number {at}"


def _picture(image: Mapping[str, Any]) -> str:
    return f"image id {image['id']} ({image['file_name']})"


def _annotation_complaint(
    annotation: Any, at: int, images: Mapping[Any, int], names: Mapping[Any, str], seen: dict[Any, int]
) -> tuple[int | None, str | None]:
    """(the number of its picture, what is wrong with the annotation), either of which may be None.

    `seen` are the ids so far, with their numbers. Where there is a picture, it is not said whose the problem is.
    """
    who = _who(annotation, at)
    if not isinstance(annotation, dict):
        return None, f"{who}: found {describe(annotation)}, expected an object"
    picture = annotation.get("image_id")
    if not _is_id(picture) or picture not in images:
        return None, f"{who}: found image_id {describe(picture)}, which no usable entry of 'images' has"
    number = images[picture]
    first = seen.setdefault(annotation["id"], at) if _is_id(annotation.get("id")) else at
    if first != at:
        return number, f"it is annotation number {at}, and number {first} has this id, too: give each an id of its own"
    category = annotation.get("category_id")
    if not _is_id(category) or category not in names:
        return number, f"found category_id {describe(category)}, which no entry of 'categories' has"
    problem = box_complaint(annotation.get("bbox"))
    return number, None if problem is None else f"bbox: {problem}"


def _file(path: Path, image: Mapping[str, Any]) -> Path | None:
    own = Path(image["file_name"]).expanduser()
    places = [path.absolute().parent / folder / own for folder in FOLDERS]
    return next((place for place in places if place.is_file()), None)


def _picture_complaints(
    image: Mapping[str, Any], found: Path | None, boxes: Mapping[int, Mapping[str, Any]]
) -> Iterator[str]:
    """What is wrong with a picture's file: it is missing, of another size than is said, or smaller than its boxes."""
    if found is None:
        yield f"image id {image['id']}: found no file {image['file_name']!r} beside the file or in images/ there"
        return
    try:
        width, height = pictures.size(str(found))
    except DataError:
        return  # the task says what is wrong with it
    said = [image.get(side) for side in ("width", "height")]
    unclear = turned(str(found), said) if boxes else None
    if unclear is not None:
        yield f"{_picture(image)}: {unclear}"
        return
    if any(_is_size(side) and side != true for side, true in zip(said, (width, height), strict=True)):
        wanted = " x ".join(map(describe, said))
        yield (
            f"{_picture(image)}: found a picture of {width} x {height} pixels, expected {wanted} as its entry in"
            " 'images' says: give the picture that the boxes were drawn on, or mend width, height and boxes"
        )
        return
    for at, box in boxes.items():
        problem = box_outside(box["bbox"], width, height)
        if problem is not None:
            yield f"{_who(box, at)} of {_picture(image)}: bbox: {problem}"


def _together(problems: Sequence[str]) -> str:
    """A row is bad once, whatever number of things are wrong with it."""
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "; ".join([*problems[:SHOWN], *more])


def _row(
    path: Path,
    number: int,
    found: Path,
    image: Mapping[str, Any],
    boxes: Sequence[Mapping[str, Any]],
    names: Mapping[Any, str],
) -> Row:
    objects: dict[str, list[Any]] = {
        "bbox": [list(box["bbox"]) for box in boxes],
        "category": [names[box["category_id"]] for box in boxes],
    }
    if any(box.get("iscrowd") for box in boxes):
        objects["iscrowd"] = [int(bool(box.get("iscrowd"))) for box in boxes]
    # Of a picture that viewers show turned, the size says on which view its boxes are.
    turned_one = bool(boxes) and pictures.orientation(str(found)) != 1
    said = {side: image[side] for side in ("width", "height") if turned_one and _is_size(image.get(side))}
    return Row({"image": str(found), "objects": objects, **said}, str(path), number)
