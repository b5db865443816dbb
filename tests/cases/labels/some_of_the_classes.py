import json

from case_bench import Bench
from plain_classifier import among, scores
from pytest import approx

KNOWN = ["contradiction", "entailment"]


def check(bench: Bench) -> None:
    rows = [json.loads(line) for line in bench.input().read_text(encoding="utf-8").splitlines()]
    data = bench.write("rows.jsonl", *({**r, "label": r["label"].replace("neutral", "unrelated")} for r in rows))
    model = bench.model("nli")
    run = bench.run("--adapter", "lora", "--model", model, "--data", data, "-o", "dtype=float32")
    assert "unrelated starts new" in run.answer.text
    for sample in run.samples:
        row = sample["row"]
        plain = among(KNOWN, scores(model, row["premise"], row["hypothesis"]))
        assert among(KNOWN, sample["before"]["scores"]) == approx(plain, abs=1e-5)

    fewer = bench.write("fewer.jsonl", *(row for row in rows if row["label"] in KNOWN))
    run = bench.run("--adapter", "lora", "--model", model, "--data", fewer, "-o", "dtype=float32")
    for sample in run.samples:
        row = sample["row"]
        plain = among(KNOWN, scores(model, row["premise"], row["hypothesis"]))
        assert sample["before"]["scores"] == approx(plain, abs=1e-5)
