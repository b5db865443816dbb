"""COCO with sizes of either view, and the same rows as JSON."""

import json

from case_bench import Bench

from pefttool.config import registry
from pefttool.data import rows


def check(bench: Bench) -> None:
    shown = bench.pefttool("data", "check", bench.input())
    assert shown.code == 1 and "the boxes are of the turned picture, by its size" in shown.text, shown.text

    document = json.loads(bench.input().read_text())
    for image in document["images"]:  # as stored: 80 x 60
        image["file_name"] = str(bench.input().parent / "images" / image["file_name"])
        image["width"], image["height"] = image["height"], image["width"]
    stored = bench.folder / "stored.json"
    stored.write_text(json.dumps(document))
    found = rows.read([stored], registry.build())
    right = {a["image_id"]: a["bbox"] for a in document["annotations"]}
    assert [row.values["objects"]["bbox"] for row in found.rows] == [[right[i]] for i in range(len(found.rows))]
    assert len(found.rows) == 4 and not found.problems
    checked = bench.pefttool("data", "check", stored)
    assert "EXIF" not in checked.text, checked.text

    lines = [{k: v for k, v in row.values.items() if k in ("image", "objects")} for row in found.rows]
    answer = bench.pefttool("data", "check", bench.write("rows.jsonl", *lines))
    assert answer.code == 1 and "EXIF orientation 6" in answer.text, answer.text
