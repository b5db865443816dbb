"""What cases about conversations ask of a task, with the tokenizer of a tiny model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from case_bench import Bench

from pefttool import Facts, Loaded, Row, Setting
from pefttool.setup.base import load_model
from pefttool.setup.loading import Loading
from pefttool_text.batching import IGNORE
from pefttool_text.chat import Chat


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def loaded(bench: Bench, model: str) -> Loaded:
    """The model and its tokenizer, as a run has them."""
    read = load_model(
        Loading(bench.model(model), Chat(), Setting(Chat.Options()), None, Facts(architecture=""), "cpu", "float32")
    )
    found, processor = read.model, read.processor
    return Loaded(found, processor)


def tokenizer_of(bench: Bench, model: str) -> Any:
    return loaded(bench, model).processor


def encoded(task: Any, values: Mapping[str, Any], tokenizer: Any, **options: Any) -> dict[str, Any]:
    """The encoded row, which the task has to find good."""
    chosen = task.Options(**options)
    complaint = task.check_row(values, chosen)
    assert complaint is None, complaint
    found: dict[str, Any] = task.encode(Row(values, "rows.jsonl", 1), tokenizer, Setting(chosen, sequence_length=4096))
    return found


def trained(example: Mapping[str, Any]) -> list[int]:
    """The ids that are learnt."""
    return [label for label in example["labels"] if label != IGNORE]
