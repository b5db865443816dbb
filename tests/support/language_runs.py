"""A run of a translator on a case's rows, beside plain transformers on the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from case_bench import Bench
from plain_translator import translated

TEXTS = (
    *("a gem of a film", "warm and funny", "dull and slow", "far too long", "the plot is thin", "the acting is great"),
    *("Anna lives in Paris", "works for Acme", "take four and five", "their sum is nine", "be brief", "quite sure"),
)


def compare(bench: Bench, model: Path, keys: tuple[str, str], languages: tuple[str, str], forced: bool) -> None:
    """Rows whose languages are called `keys`: the untrained model's loss and answers are those of plain transformers
    with the tokenizer's `languages`."""
    rows = ({"translation": dict(zip(keys, pair, strict=True))} for pair in zip(TEXTS, TEXTS[::-1], strict=True))
    options = ("-o", "dtype=float32", "-o", "generation.max_new_tokens=8")
    run = bench.run("--adapter", "lora", "--model", model, "--data", bench.write("rows.jsonl", *rows), *options)
    samples = run.json("metrics.json")["samples"]
    assert len(samples) == 3
    pairs = [(sample["row"]["translation"][keys[0]], sample["row"]["translation"][keys[1]]) for sample in samples]
    loss, answers = translated(model, languages, pairs, forced)
    assert run.before["loss"] == pytest.approx(loss, abs=1e-5)
    assert [sample["before"]["target"] for sample in samples] == answers
