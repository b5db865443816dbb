"""Which columns are meant where none has a usual name, from their values alone."""

from __future__ import annotations

from typing import Any

import pytest

from pefttool import Row
from pefttool.config import registry
from pefttool.data import suggestions
from pefttool.toolkit.columns import find_column

TASKS = registry.build().tasks
TICKETS = [{"no": f"T{i}", "body_de": f"the parcel {i} is late", "kind": "ab"[i % 2]} for i in range(12)]


def columns(name: str, rows: list[dict[str, Any]], **given: Any) -> str | None:
    task = TASKS[name]
    return suggestions.columns(task, task.Options(**given), [Row(row) for row in rows])


def test_long_texts_are_texts_and_few_values_a_class() -> None:
    both = "-o task.text_column=body_de -o task.label_column=kind (2 values)"
    assert columns("text-classification", TICKETS) == f"--task text-classification {both}"
    assert columns("causal-lm", TICKETS) == "--task causal-lm -o task.text_column=body_de"


def test_only_what_is_missing_is_guessed() -> None:
    named = [{"text": row["body_de"], "kind": row["kind"]} for row in TICKETS]
    assert columns("text-classification", named) == "--task text-classification -o task.label_column=kind (2 values)"
    assert columns("text-classification", named, label_column="sort") is None  # given, if wrongly


@pytest.mark.parametrize("rows", [[], [{"a": 1}], [{"a": f"w {i}", "b": f"v{i}"} for i in range(9)], [{}, {"a": 1}]])
def test_nothing_is_guessed_where_nothing_would_do(rows: list[dict[str, Any]]) -> None:
    assert columns("text-classification", rows) is None


def test_a_name_that_a_shell_would_cut_is_quoted() -> None:
    rows = [{"the text": f"a word {i}", "my kind": i % 2} for i in range(6)]
    hint = columns("text-classification", rows)
    assert hint is not None and "-o 'task.text_column=the text' -o 'task.label_column=my kind' (2 values)" in hint


def test_usual_names_are_found_in_any_capitals_and_a_given_one_as_it_is() -> None:
    assert find_column({"Text": 1, "LABEL": 2}, None, ("text",)) == "Text"
    assert find_column({"Text": 1, "text": 2}, None, ("text",)) == "text"
    assert find_column({"Text": 1}, "text", ("text",)) is None
