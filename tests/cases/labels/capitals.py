import json

from case_bench import Bench
from plain_classifier import scores
from pytest import approx


def check(bench: Bench) -> None:
    rows = [json.loads(line) for line in bench.input().read_text(encoding="utf-8").splitlines()]
    data = bench.write("rows.jsonl", *({**row, "label": row["label"].title()} for row in rows))
    model = bench.model("posneg")
    run = bench.run("--adapter", "lora", "--model", model, "--data", data, "-o", "dtype=float32")
    for sample in run.samples:
        plain = {name.title(): score for name, score in scores(model, sample["row"]["text"]).items()}
        assert sample["before"]["scores"] == approx(plain, abs=1e-5)
