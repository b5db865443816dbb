"""A model that was trained to answer with a number: before training its answers are its own, whatever the rows' are;
and so are those of what a run delivered, as the model of another run with other numbers."""

from pathlib import Path

import torch
from case_bench import Bench, Run
from pytest import approx
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def check(bench: Bench) -> None:
    model = bench.model("similarity")
    first = run(bench, model, "full", 3.0, 0.37)
    assert run(bench, model, "lora", -40.25, 11.5).before["rmse"] > 30
    plain, tokenizer = AutoModelForSequenceClassification.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    for sample in first.json("metrics.json")["samples"]:
        with torch.no_grad():
            value = float(plain.eval()(**tokenizer(sample["row"]["text"], return_tensors="pt")).logits)
        assert sample["before"]["value"] == approx(value, abs=1e-5)

    again = run(bench, first.folder / "adapter", "lora", 100.25, 5.5)
    after = {sample["row"]["text"]: sample["after"]["value"] for sample in first.json("metrics.json")["samples"]}
    for sample in again.json("metrics.json")["samples"]:
        assert sample["before"]["value"] == approx(after[sample["row"]["text"]], abs=1e-4)


def run(bench: Bench, model: Path, adapter: str, least: float, step: float) -> Run:
    texts = ("a gem", "warm", "dull", "far too long", "thin", "great", "Paris", "Acme", "four", "nine", "brief", "sure")
    data = bench.write("rows.jsonl", *({"text": t, "label": least + step * i} for i, t in enumerate(texts)))
    return bench.run("--adapter", adapter, "--model", model, "--data", data, "-o", "dtype=float32")
