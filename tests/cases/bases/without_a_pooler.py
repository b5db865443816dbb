"""An adapter on an encoder without a pooler: its numbers are the same wherever it is loaded."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from case_bench import Bench

#: Models without a pooler, and what then belongs to the head. DistilBERT's layer between has always been the head's.
MODELS = {
    "base-bert-mlm": ["bert.pooler.dense", "classifier"],
    "base-albert-mlm": ["albert.pooler", "classifier"],
    "base-distilbert-mlm": ["classifier", "pre_classifier"],
}
TASK = ("--task", "text-classification", "-o", "task.pooling=model", "-o", "dtype=float32")


def check(bench: Bench) -> None:
    for model in MODELS:
        _check(bench, model, "lora")
    for adapter in ("prefix", "head", "full"):
        _check(bench, "base-bert-mlm", adapter)
    mean = ("--adapter", "head", "--model", bench.model("base-bert-mlm"), "--data", bench.input())
    unused = bench.run(*mean, "-o", "check=none", "-o", "train.max_steps=1")
    assert not [text for text in unused.notices if "lacks" in text], "the mean over tokens does not use a pooler"


def _check(bench: Bench, name: str, adapter: str) -> None:
    """The figures of the run, whose adapter was loaded again and compared (`check=files`), are plain transformers'."""
    base, lines = bench.model(name), bench.input().read_text(encoding="utf-8").splitlines()
    data, rows = bench.folder / "data.jsonl", bench.folder / "held_out.jsonl"
    data.write_text("\n".join(lines[6:]))
    rows.write_text("\n".join(lines[:6]))
    given = ("--adapter", adapter, "--model", base, "--data", data, "--eval-data", rows, *TASK)
    run = bench.run(*given, "-o", "train.learning_rate=0.01")
    folder = run.folder / "adapter"
    assert sorted(json.loads((folder / "pefttool.json").read_text())["head_modules"]) == MODELS[name]
    said = [text for text in run.notices if "lacks" in text]
    assert len(said) == (name != "base-distilbert-mlm"), said
    assert run.after["loss"] == pytest.approx(_plain_loss(base, adapter, folder, rows), abs=1e-5), (name, adapter)


def _plain_loss(base: Path, adapter: str, folder: Path, rows: Path) -> float:
    """The mean loss over all rows, in float32, without pefttool; what a file lacks starts from another seed."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoTokenizer

    torch.manual_seed(99)
    model = _plain(base, adapter, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    labels = json.loads((folder / "pefttool.json").read_text())["labels"]
    total, lines = 0.0, rows.read_text().splitlines()
    for row in map(json.loads, lines):
        with torch.no_grad():
            logits = model(**tokenizer(row["text"], return_tensors="pt", return_token_type_ids=False)).logits
        total += float(cross_entropy(logits.float(), torch.tensor([labels.index(row["label"])])))
    return total / len(lines)


def _plain(base: Path, adapter: str, folder: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    if adapter == "head":
        return runpy.run_path(str(folder / "load_head.py"))["model"]
    if adapter == "full":
        return AutoModelForSequenceClassification.from_pretrained(folder)
    return PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=2), folder)
