"""Boxes as parts of a picture of 64 x 48 pixels, and small ones in pixels."""

import json

from case_bench import Bench
from PIL import Image


def check(bench: Bench) -> None:
    for i in range(4):
        Image.new("RGB", (64, 48), (i, 0, 0)).save(bench.folder / f"{i}.png")
    for box, good in (([0.25, 0.25, 0.5, 0.5], False), ([8, 8, 1, 1], True), ([0, 0, 1.5, 1], True)):
        objects = {"bbox": [box], "category": ["cat"]}
        rows = bench.write("rows.jsonl", *[{"image": f"{i}.png", "objects": objects} for i in range(4)])
        coco = bench.folder / "coco.json"
        images = [{"id": i, "file_name": f"{i}.png"} for i in range(4)]
        boxes = [{"id": i, "image_id": i, "category_id": 3, "bbox": box} for i in range(4)]
        coco.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "cat"}]}))
        for data in (rows, coco):
            answer = bench.pefttool("data", "check", data)
            assert answer.code == (0 if good else 1), answer.text
            assert ("by its width and height (64, 48)" in answer.text) is not good, answer.text
