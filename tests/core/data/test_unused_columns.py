"""What of a row no task reads is named once, with how many rows have it."""

from __future__ import annotations

from typing import Any

import pytest

from pefttool import Row
from pefttool.data import unused_columns

MESSAGES = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}


class Reads:
    """As much of a task as is asked here; `asked` counts how often it is."""

    def __init__(self, *paths: str) -> None:
        self.paths, self.asked = paths, 0

    def reads(self, values: Any, options: Any) -> Any:
        self.asked += 1
        return self.paths or None


@pytest.mark.parametrize(
    ("values", "reads", "left"),
    [
        ({"text": "a", "id": 1}, ["text"], ["id"]),
        ({"text": "a", "id": None, "note": ""}, ["text"], []),
        (MESSAGES, ["messages"], []),
        (MESSAGES, ["messages[].role", "messages[].content"], ["messages[].weight"]),
        (MESSAGES, ["text"], ["messages"]),
        ({"a": {"b": {"c": 1, "d": 2}, "e": 3}}, ["a.b.c"], ["a.b.d", "a.e"]),
        ({"petal.length": 1, "petal.width": 2}, ["petal.length"], ["petal.width"]),
        ({"a": [None, {"b": 1}, "text"]}, ["a[].c"], ["a[].b"]),
    ],
)
def test_what_is_left(values: Any, reads: list[str], left: list[str]) -> None:
    assert unused_columns.unread(values, reads) == left


def test_it_is_one_line_and_columns_of_all_rows_need_no_count() -> None:
    rows = [Row({"id": i, "text": "a", "info": {"url": "u"}}) for i in range(3)]
    rows += [Row({"text": "a", "id": 3, "source": "s"})]
    assert unused_columns.line(rows, Reads("text"), None) == "not used: column 'id'; 'info' (3 rows); 'source' (1 rows)"
    assert (
        unused_columns.line(rows, Reads("text", "info.x", "source"), None)
        == "not used: column 'id'; 'info.url' (3 rows)"
    )
    assert unused_columns.line(rows, Reads("text", "id", "info", "source"), None) is None
    assert unused_columns.line(rows, Reads(), None) is None


def test_of_many_names_the_first_are_shown() -> None:
    found = unused_columns.line([Row({f"c{i}": 1 for i in range(40)})], Reads("text"), None)
    assert found is not None and found.endswith("'c9'; and 30 more")


def test_a_task_is_asked_once_for_each_kind_of_row() -> None:
    task = Reads("messages[].role", "messages[].content")
    turns = ([{"role": "user", "content": "a"}], [{"role": "user", "content": "a"}] * 5, MESSAGES["messages"])
    rows = [Row({"messages": turns[i % 3]}) for i in range(30)]
    assert unused_columns.line(rows, task, None) == "not used: 'messages[].weight' (10 rows)"
    assert task.asked == 2
