"""Every registered task, quantizer and format keeps its contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pefttool import registry as registries
from pefttool.testing import check_format, check_quantizer, check_task

REGISTRY = registries.build()
CHATS = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in (("hi", "hello there"), ("2+2?", "4"), ("a longer question, please", "yes"))
]
#: Good rows of every task, and the tiny model it runs on: a new task adds a line here.
TASK_ROWS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "causal-lm": ([{"text": t} for t in ("to be or not to be", "short", "a line of another length")], "decoder"),
    "chat": (CHATS, "decoder"),
    "text-classification": (
        [
            {"text": "good", "label": "pos"},
            {"text": "really quite bad", "label": "neg"},
            {"text": "fine", "label": "pos"},
        ],
        "encoder",
    ),
}
ROWS = [{"text": "one", "label": "1"}, {"text": "two, and\nmore", "label": "0"}]
#: What a file of every format holds when it is written with ROWS.
FORMATS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "csv": ("a.csv", ROWS),
    "json": ("a.json", ROWS),
    "jsonl": ("a.jsonl", ROWS),
    "parquet": ("a.parquet", ROWS),
    "text": ("a.txt", [{"text": "one"}, {"text": "two, and\nmore"}]),
}


def test_nothing_is_left_out() -> None:
    assert set(REGISTRY.tasks) == set(TASK_ROWS)
    assert set(REGISTRY.formats) == set(FORMATS)
    assert set(REGISTRY.quantizers) == {"nf4", "fp4", "int8"}


@pytest.mark.parametrize("name", REGISTRY.tasks)
def test_task(name: str) -> None:
    check_task(REGISTRY.tasks[name], *TASK_ROWS[name])


@pytest.mark.parametrize("name", REGISTRY.tasks)
def test_no_task_claims_anothers_rows(name: str) -> None:
    for other, (rows, _) in TASK_ROWS.items():
        assert (REGISTRY.tasks[name].recognise(list(rows[0]), rows) is not None) == (name == other)


@pytest.mark.parametrize("name", REGISTRY.quantizers)
def test_quantizer(name: str) -> None:
    check_quantizer(REGISTRY.quantizers[name])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import csv

    import datasets

    folder = tmp_path_factory.mktemp("formats")
    found = {name: folder / file for name, (file, _) in FORMATS.items()}
    with found["csv"].open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["text", "label"])
        writer.writeheader()
        writer.writerows(ROWS)
    found["json"].write_text(json.dumps(ROWS))
    found["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    datasets.Dataset.from_list(ROWS).to_parquet(found["parquet"])
    found["text"].write_text("one\n\ntwo, and\nmore\n")
    return found


@pytest.mark.parametrize("name", REGISTRY.formats)
def test_format(name: str, files: dict[str, Path]) -> None:
    others = [path for other, path in files.items() if other != name]
    check_format(REGISTRY.formats[name], files[name], FORMATS[name][1], others)
