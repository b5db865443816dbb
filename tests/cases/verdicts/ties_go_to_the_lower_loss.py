"""Of evaluations that tie in accuracy the one with the lowest loss is delivered."""

from typing import Any

from judging import reviews


def check(bench: Any) -> None:
    data = bench.write("train.jsonl", *reviews(40, good=0.75))
    run = bench.run(
        *("--adapter", "head", "--model", bench.model("bert"), "--data", data, "--task", "text-classification"),
        *("-o", "dtype=float32", "-o", "train.max_steps=12", "-o", "train.evaluate_every=1"),
        *("-o", "train.head_learning_rate=1e-4"),  # too slow for a row to change its class
    )
    found = [(event["step"], event["metrics"]) for event in run.events("Evaluated")]
    best = max(metrics["accuracy"] for _, metrics in found)
    tied = [(metrics["loss"], step) for step, metrics in found if metrics["accuracy"] == best]
    assert len(tied) > 1, "the case needs a tie"
    assert tied[0] != min(tied), "the earliest has to be another"
    assert (run.after["loss"], run.json("metrics.json")["best_step"]) == min(tied)
