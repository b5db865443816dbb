from case_bench import Bench
from plain_classifier import scores
from pytest import approx


def check(bench: Bench) -> None:
    model = bench.model("nli")
    run = bench.run("--adapter", "lora", "--model", model, "--data", bench.input(), "-o", "dtype=float32")
    assert run.before["accuracy"] == 0.75
    assert "those of the training rows' classes are taken by name" in run.answer.text
    for sample in run.samples:
        row = sample["row"]
        assert sample["before"]["scores"] == approx(scores(model, row["premise"], row["hypothesis"]), abs=1e-5)
