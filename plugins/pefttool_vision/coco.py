"""COCO annotation files: `images`, `annotations` and `categories` in one JSON object; a row is a picture.

A picture's place is its number in `images`; every complaint about a box names the annotation's id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pefttool import DataError, DataFormat, Row
from pefttool.named_columns import describe
from pefttool.values import DataProblem
from pefttool_vision.json_head import top_level
from pefttool_vision.objects import box_complaint

PARTS = ("images", "annotations", "categories")
#: What else such a file may hold at its top.
MORE = ("info", "licenses", "type", "videos")
#: Where the pictures may lie, beside the file, if `file_name` is not relative to the file itself.
FOLDERS = (".", "images")


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
        names = _categories(path, document["categories"])
        images, annotations = document["images"], document["annotations"]
        problems: dict[int, str] = {}
        numbers: dict[Any, int] = {}
        for number, image in enumerate(images, 1):
            problem = _image_complaint(image, numbers)
            if problem is not None:
                problems[number] = problem
            else:
                numbers[image["id"]] = number
        boxes: dict[int, list[Mapping[str, Any]]] = {number: [] for number in range(1, len(images) + 1)}
        strays: list[DataProblem] = []
        for at, annotation in enumerate(annotations, 1):
            picture, problem = _annotation_complaint(annotation, at, numbers, names)
            if picture is None:
                strays.append(DataProblem(str(path), len(images) + 1, str(problem)))
            elif problem is None:
                boxes[picture].append(annotation)
            else:
                problems.setdefault(picture, problem)
        for number, image in enumerate(images, 1):
            if number in problems:
                yield DataProblem(str(path), number, problems[number])
            else:
                yield _row(path, number, image, boxes[number], names)
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


def _categories(path: Path, categories: Sequence[Any]) -> dict[Any, str]:
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
    return names


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _image_complaint(image: Any, known: Mapping[Any, int]) -> str | None:
    if not isinstance(image, dict) or not _is_id(image.get("id")):
        return f"found {describe(image)} among 'images', expected an object with 'id' and 'file_name'"
    if image["id"] in known:
        return f"image id {image['id']} is image number {known[image['id']]}, too: give each an id of its own"
    if not isinstance(image.get("file_name"), str) or not image["file_name"].strip() or "\0" in image["file_name"]:
        return f"image id {image['id']}: found file_name {describe(image.get('file_name'))}, expected a path"
    return None


def _annotation_complaint(
    annotation: Any, at: int, images: Mapping[Any, int], names: Mapping[Any, str]
) -> tuple[int | None, str | None]:
    """(the number of its picture, what is wrong with the annotation), either of which may be None."""
    if not isinstance(annotation, dict):
        return None, f"annotation number {at}: found {describe(annotation)}, expected an object"
    who = f"annotation id {annotation['id']}" if _is_id(annotation.get("id")) else f"annotation number {at}"
    picture = annotation.get("image_id")
    if not _is_id(picture) or picture not in images:
        return None, f"{who}: found image_id {describe(picture)}, which no usable entry of 'images' has"
    number = images[picture]
    category = annotation.get("category_id")
    if not _is_id(category) or category not in names:
        return number, f"{who}: found category_id {describe(category)}, which no entry of 'categories' has"
    problem = box_complaint(annotation.get("bbox"))
    return number, None if problem is None else f"{who}: bbox: {problem}"


def _row(
    path: Path, number: int, image: Mapping[str, Any], boxes: Sequence[Mapping[str, Any]], names: Mapping[Any, str]
) -> Row | DataProblem:
    own = Path(image["file_name"]).expanduser()
    places = [path.absolute().parent / folder / own for folder in FOLDERS]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        message = f"image id {image['id']}: found no file {image['file_name']!r} beside the file or in images/ there"
        return DataProblem(str(path), number, message)
    objects: dict[str, list[Any]] = {
        "bbox": [list(box["bbox"]) for box in boxes],
        "category": [names[box["category_id"]] for box in boxes],
    }
    if any(box.get("iscrowd") for box in boxes):
        objects["iscrowd"] = [int(bool(box.get("iscrowd"))) for box in boxes]
    return Row({"image": str(found), "objects": objects}, str(path), number)
