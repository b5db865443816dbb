"""Files as `datasets` writes them: numbers in the rows, the names of the classes beside them."""

import re
from pathlib import Path
from typing import Any

from case_bench import Bench
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from plain_classifier import scores
from pytest import approx

TEXTS = ("a gem of a film", "warm", "dull and slow", "far too long", "the plot is thin", "great", "Paris", "be brief")


def check(bench: Bench) -> None:
    entails = written(bench.folder / "nli.parquet", ["entailment", "neutral", "contradiction"], TEXTS * 2)
    for model in ("nli", "nli-unnamed"):  # its rows are in another order; where they have no names, the file's counts
        run = bench.run("--adapter", "lora", "--model", bench.model(model), "--data", entails, "-o", "dtype=float32")
        for sample in run.json("metrics.json")["samples"]:
            found = scores(bench.model(model), sample["row"]["text"])
            names = ("entailment", "neutral", "contradiction")
            right = found if model == "nli" else {name: found[f"LABEL_{i}"] for i, name in enumerate(names)}
            assert sample["before"]["scores"] == approx(right, abs=1e-5)

    tags = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=["O", "B-x", "I-x"]))})
    rows = {
        "tokens": [text.split() for text in TEXTS],
        "ner_tags": [[i % 3 for i, _ in enumerate(t.split())] for t in TEXTS],
    }
    Dataset.from_dict(rows, features=tags).to_parquet(bench.folder / "ner.parquet")
    said = bench.pefttool("data", "check", bench.folder / "ner.parquet")
    assert said.code == 0 and re.search(r'"ner_tags": \["O", "B-x"', said.text), said.text

    unknown = written(bench.folder / "unknown.parquet", ["no", "yes"], TEXTS, last=-1)
    said = bench.pefttool("data", "check", unknown)
    assert said.code == 1 and "unknown.parquet:8: column 'label': found None" in said.text


def written(path: Path, names: list[str], texts: tuple[str, ...], last: int | None = None) -> Path:
    numbers = [i % len(names) for i, _ in enumerate(texts)]
    columns: dict[str, Any] = {"text": [f"{text} {i}" for i, text in enumerate(texts)], "label": numbers}
    if last is not None:
        numbers[-1] = last
    Dataset.from_dict(
        columns, features=Features({"text": Value("string"), "label": ClassLabel(names=names)})
    ).to_parquet(path)
    return path
