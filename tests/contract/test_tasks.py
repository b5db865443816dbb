"""Every registered task keeps its contract."""

from __future__ import annotations

from typing import Any

import pytest

from pefttool import registry as registries
from pefttool.testing import check_task

REGISTRY = registries.build()
#: Good rows of every task, of different lengths: a new task adds a line here.
ROWS: dict[str, list[dict[str, Any]]] = {
    "causal-lm": [{"text": t} for t in ("to be or not to be", "shorter one", "a line of yet another length")],
    "chat": [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in (("hi", "hello there"), ("2+2?", "4"), ("a longer question, please", "yes"))
    ],
    "text-classification": [
        {"text": "good stuff", "label": "pos"},
        {"text": "really quite bad, from its first minute to its last", "label": "neg"},
        {"text": "fine, I suppose", "label": "pos"},
    ],
}


def test_no_task_is_left_out() -> None:
    assert set(REGISTRY.tasks) == set(ROWS)


@pytest.mark.parametrize("name", REGISTRY.tasks)
def test_contract(name: str) -> None:
    check_task(REGISTRY.tasks[name], ROWS[name], others=[rows for other, rows in ROWS.items() if other != name])
