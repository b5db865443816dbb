"""Names of classes: numbers in the order of numbers, and everything that only looks like one as a name."""

from __future__ import annotations

import pytest

from pefttool import Row
from pefttool.api.errors import DataError
from pefttool.toolkit import class_names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "9", "-1", "9"], ("-1", "9", "10")),
        (["b", "10", "9"], ("10", "9", "b")),
        (["01", "1"], ("01", "1")),
        (["²", "1"], ("1", "²")),
        (["--1", "1"], ("--1", "1")),
        (["-", "1"], ("-", "1")),
    ],
)
def test_the_order_of_names(names: list[str], expected: tuple[str, ...]) -> None:
    assert class_names.in_order(names) == expected


def test_of_many_classes_an_error_lists_some() -> None:
    known = [f"c{i}" for i in range(20)]
    assert class_names.numbers(["c3", "c0"], known, Row({})) == [3, 0]
    with pytest.raises(DataError, match=r"a\.csv:7: class 'd' is not among the training rows' \(c0, .*, c9, \.\.\.\)"):
        class_names.number("d", known, Row({}, "a.csv", 7))
