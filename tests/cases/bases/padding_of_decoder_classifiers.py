"""Logits of rows of different lengths in one batch, padded on the right and on the left, against each row alone."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from case_bench import Bench
from torch import Tensor

TASK = ("--task", "text-classification", "-o", "task.pooling=model", "-o", "dtype=float32")
TEXTS = ["a gem", "dull and slow, and far too long, as the plot is thin", "great acting"]


def check(bench: Bench) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    for name in ("base-gpt2", "base-llama-other-padding"):
        for adapter in ("lora", "head") if name == "base-gpt2" else ("lora",):
            lines = bench.input().read_text(encoding="utf-8").splitlines()
            train, held_out = bench.folder / "train.jsonl", bench.folder / "held_out.jsonl"
            train.write_text("\n".join(lines[6:]))
            held_out.write_text("\n".join(lines[:6]))
            data = ("--data", train, "--eval-data", held_out)
            run = bench.run("--adapter", adapter, "--model", bench.model(name), *data, *TASK)
            folder, merged = run.folder / "adapter", run.folder / "merged"
            answer = bench.pefttool("merge", run.folder)
            assert answer.code == 0, answer.text
            models = [_adapted(bench.model(name), folder), AutoModelForSequenceClassification.from_pretrained(merged)]
            for place, model in zip((folder, merged), models, strict=True):
                _same(model.eval(), AutoTokenizer.from_pretrained(place))
            tokenizer = AutoTokenizer.from_pretrained(folder)
            labels = json.loads((folder / "pefttool.json").read_text())["labels"]
            assert run.after["loss"] == pytest.approx(_loss(models[0], tokenizer, held_out, labels), abs=1e-5)


def _adapted(base: Path, folder: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if (folder / "load_head.py").is_file():
        return runpy.run_path(str(folder / "load_head.py"))["model"]
    padding = AutoTokenizer.from_pretrained(folder).pad_token_id
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, pad_token_id=padding)
    return PeftModel.from_pretrained(plain, folder)


def _same(model: Any, tokenizer: Any) -> None:
    alone = torch.cat([_logits(model, tokenizer, [text]) for text in TEXTS])
    for side in ("right", "left"):
        tokenizer.padding_side = side
        torch.testing.assert_close(_logits(model, tokenizer, TEXTS), alone, atol=1e-5, rtol=0)


def _logits(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    given = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    # GPT-2 counts positions from the left edge of a batch, unless it is told.
    positions = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits: Tensor = model(**given, position_ids=positions).logits
    return logits


def _loss(model: Any, tokenizer: Any, data: Path, labels: list[str]) -> float:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    logits = torch.cat([_logits(model, tokenizer, [row["text"]]) for row in rows])
    truth = torch.tensor([labels.index(row["label"]) for row in rows])
    return float(torch.nn.functional.cross_entropy(logits, truth))
