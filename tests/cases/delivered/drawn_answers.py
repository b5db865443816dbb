"""Answers that are drawn at random are drawn alike by whoever judges the same adapter."""

from typing import Any

from judging import in_this_process


def check(bench: Any) -> None:
    rows = [{"source": f"count to {i}", "target": f"one and {i}"} for i in range(16)]
    run = bench.run(
        *("--adapter", "lora", "--model", bench.model("blenderbot"), "--data", bench.write("rows.jsonl", *rows)),
        *("--task", "seq2seq", "-o", "generation.do_sample=true", "-o", "generation.max_new_tokens=8"),
        *("-o", "task.metrics=[chrf]", "-o", "dtype=float32"),
    )
    assert in_this_process(bench, run) == run.after
