"""Boxes: there and back, through any resizing; overlap; suppression; which cell answers for which box."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pefttool_vision.boxes import (
    generalized_overlap,
    overlap,
    suppress,
    unit_from_xywh,
    xywh_from_unit,
    xyxy_from_unit,
)
from pefttool_vision.dense import assign, cells
from pefttool_vision.objects import Thing, complaint, looks_like_objects, outside, things

SIDE = st.integers(8, 4000)
PART = st.floats(0, 1, allow_nan=False)


@st.composite
def inside(draw: st.DrawFn) -> tuple[tuple[float, float, float, float], int, int]:
    """A box of at least a pixel inside a picture, and the picture's width and height."""
    width, height = draw(SIDE), draw(SIDE)
    w, h = 1 + draw(PART) * (width - 1), 1 + draw(PART) * (height - 1)
    return (draw(PART) * (width - w), draw(PART) * (height - h), w, h), width, height


@given(inside())
def test_pixels_to_parts_and_back(drawn: tuple[tuple[float, float, float, float], int, int]) -> None:
    box, width, height = drawn
    assert xywh_from_unit(unit_from_xywh(box, width, height), width, height) == pytest.approx(box, abs=1e-6 * width)


@given(inside(), SIDE, SIDE)
def test_parts_do_not_change_when_the_picture_is_resized(
    drawn: tuple[tuple[float, float, float, float], int, int], wide: int, high: int
) -> None:
    box, width, height = drawn
    x, y = wide / width, high / height
    resized = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    assert unit_from_xywh(resized, wide, high) == pytest.approx(unit_from_xywh(box, width, height), abs=1e-9)


@given(inside(), st.floats(-50, 50), st.floats(-50, 50))
def test_what_leaves_the_picture_is_cut_off(
    drawn: tuple[tuple[float, float, float, float], int, int], right: float, down: float
) -> None:
    (x, y, w, h), width, height = drawn
    cx, cy, ws, hs = unit_from_xywh((x + right, y + down, w, h), width, height)
    assert cx - ws / 2 >= -1e-9 and cx + ws / 2 <= 1 + 1e-9 and cy - hs / 2 >= -1e-9 and cy + hs / 2 <= 1 + 1e-9


def test_overlap_is_what_it_is_known_to_be() -> None:
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1]])
    b = torch.tensor([[1.0, 1, 3, 3], [0, 0, 2, 2]])
    assert overlap(a, b).tolist() == [[pytest.approx(1 / 7), 1.0], [0.0, 0.25]]
    # Two unit squares with a unit gap: nothing in common, a hull of 3, a third of which is empty.
    apart = generalized_overlap(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 3, 1]]))
    assert apart.tolist() == [pytest.approx(-1 / 3)]
    assert generalized_overlap(a[:1], b[:1]).tolist() == [pytest.approx(1 / 7 - 2 / 9)]


@st.composite
def crowd(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    count = draw(st.integers(0, 14))
    numbers = draw(st.lists(st.integers(0, 12), min_size=4 * count, max_size=4 * count))
    corners = torch.tensor(numbers, dtype=torch.float32).reshape(count, 2, 2)
    boxes = torch.cat([corners.min(1).values, corners.max(1).values + 1], dim=-1)
    scores = torch.tensor(draw(st.permutations(range(count))), dtype=torch.float32)
    return boxes, scores, torch.tensor(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))


@settings(max_examples=150)
@given(crowd(), st.sampled_from([0.3, 0.5, 0.7]))
def test_suppression_keeps_what_the_definition_keeps(
    drawn: tuple[torch.Tensor, torch.Tensor, torch.Tensor], threshold: float
) -> None:
    boxes, scores, classes = drawn
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        rivals = [j for j in kept if classes[j] == classes[i]]
        if not any(bool(overlap(boxes[[i]], boxes[[j]]) > threshold) for j in rivals):
            kept.append(i)
    assert suppress(boxes, scores, classes.long(), threshold).tolist() == kept


BETWEEN_CELLS = [
    (0.0, 0.0, 1.0, 1.0),
    (0.0, 0.0, 1.0, 1.0),
    (0.0, 0.0, 1.0, 4.5),
    (0.0, 2.625, 8.0, 4.5),
    (0.0, 0.0, 4.5, 8.0),
]


#: The second to last box takes its nearest cell, which is the only one that the last box has.
ONE_AFTER_ANOTHER = [*[(0.0, 0.0, 1.0, 1.0)] * 9, (0.0, 3.5, 1.0, 1.0), (0.0, 0.0, 4.5, 4.5), (0.0, 0.0, 4.5, 6.25)]


@settings(max_examples=100)
@given(st.lists(inside(), max_size=12), st.integers(2, 9), st.integers(2, 9))
@example([(box, 8, 8) for box in ONE_AFTER_ANOTHER], 7, 2)
@example([(box, 8, 8) for box in BETWEEN_CELLS], 8, 2)
def test_every_box_has_a_cell_that_answers_for_it(
    drawn: list[tuple[tuple[float, float, float, float], int, int]], rows: int, columns: int
) -> None:
    padded = [unit_from_xywh(*box) for box in drawn] + [(0.5, 0.5, 0.01, 0.01)]
    units, real = torch.tensor(padded)[None], torch.tensor([[True] * len(drawn) + [False]])
    centres, cell = cells(rows, columns, "cpu")
    (chosen,), (units,) = assign(centres, cell, units, real), units[:, :-1]
    assert chosen.shape == (rows * columns,) and int(chosen.max()) < len(units)
    away = ((centres[:, None] - units[None, :, :2]) / cell).square().sum(-1)
    answered = set(chosen.tolist())
    # Between two cells, rounding decides which of them is the nearest.
    nearest = away <= away.min(0).values + 1e-6 if len(units) else away.bool()
    for i in range(len(units)):
        # Only a later box whose nearest cell is the same one may have taken it.
        others = [j for j in range(len(units)) if j != i and bool((nearest[:, i] & nearest[:, j]).any())]
        assert i in answered or others


def test_of_two_boxes_around_a_cell_the_smaller_is_its() -> None:
    centres, cell = cells(8, 8, "cpu")
    units = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.375, 0.375, 0.25, 0.25]])
    chosen = assign(centres, cell, units[None], torch.ones(1, 2, dtype=torch.bool)).reshape(8, 8)
    assert chosen[3, 3] == 1 and chosen[4, 4] == 0
    assert chosen[0, 0] == -1  # in the large box, and far from its centre
    assert xyxy_from_unit(units[1]).tolist() == [0.25, 0.25, 0.5, 0.5]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "found 3, expected"),
        ({"bbox": [[0, 0, 1, 1]], "category": []}, "expected as many of each"),
        ({"bbox": [[0, 0, 1]], "category": ["a"]}, "box 1: found [0, 0, 1], expected four numbers"),
        ({"bbox": [[0, 0, 1, 0]], "category": ["a"]}, "expected a width and a height above 0"),
        ({"bbox": [[0, 0, 1, float("nan")]], "category": ["a"]}, "expected four numbers"),
        ({"bbox": [[0, 0, 1, True]], "category": ["a"]}, "expected four numbers"),
        ({"bbox": [[0, 0, 1, 1], [0, 0, 2, 2]], "category": ["a", None]}, "box 2: found category None"),
        ([{"bbox": [0, 0, 1, 1]}], "expected"),
    ],
)
def test_what_is_wrong_with_boxes_is_said(value: object, words: str) -> None:
    assert words in (complaint("objects", value) or "")


def test_both_ways_of_writing_boxes_are_the_same() -> None:
    columns = {"bbox": [[0, 0, 1, 2]], "category": [7], "iscrowd": [1]}
    rows = [{"bbox": [0, 0, 1, 2], "category": 7, "iscrowd": 1}]
    assert complaint("objects", columns) is None and complaint("objects", rows) is None
    assert things(columns) == things(rows) == [Thing((0.0, 0.0, 1.0, 2.0), "7", crowd=True)]
    assert complaint("objects", []) is None and things([]) == [] and not looks_like_objects([])


@pytest.mark.parametrize(
    ("box", "fits"),
    [
        ([0, 0, 30, 20], True),
        ([-0.5, -0.5, 31.0, 21.0], True),
        ([25, 0, 10, 10], False),
        ([0, 15, 10, 10], False),
        ([-5, 0, 10, 10], False),
        ([30, 0, 1, 1], False),
    ],
)
def test_boxes_outside_of_the_picture_are_found(box: list[float], fits: bool) -> None:
    found = outside("objects", {"bbox": [[1, 1, 2, 2], box], "category": ["a", "b"]}, 30, 20)
    assert (found is None) is fits
    assert fits or "box 2" in str(found)
