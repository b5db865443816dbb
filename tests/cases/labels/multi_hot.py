import json
from pathlib import Path
from typing import Any

from case_bench import Bench
from pytest import approx
from sklearn.metrics import f1_score


def check(bench: Bench) -> None:
    """Every row is held out, so that its answers and labels can be compared."""
    data, model = bench.input(), bench.model("bert")
    judged = bench.write("judged.jsonl", *rows(data))
    options = ("-o", "data.allow_overlap=true", "-o", "dtype=float32")
    run = bench.run("--adapter", "lora", "--model", model, "--data", data, "--eval-data", judged, *options)
    assert run.json("adapter/pefttool.json")["labels"] == ["0", "1", "2"]
    answers = [json.loads(line) for line in bench.pefttool("predict", run.folder, "--data", data).out.splitlines()]
    truth = [row["labels"] for row in rows(data)]
    given = [[int(name in answer["labels"]) for name in "012"] for answer in answers]
    assert run.after["f1_micro"] == approx(f1_score(truth, given, average="micro"))
    assert run.after["all_right"] == approx(sum(t == g for t, g in zip(truth, given, strict=True)) / len(truth))
    assert run.before["f1_micro"] < 0.9

    floats = bench.write("floats.jsonl", *({**row, "labels": list(map(float, row["labels"]))} for row in rows(data)))
    kind = ("--task", "text-classification", "-o", "task.kind=multi-label")
    assert "3 classes in the training rows: 0 11, 1 7, 2 7" in bench.pefttool("data", "check", floats, *kind).text


def rows(data: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
