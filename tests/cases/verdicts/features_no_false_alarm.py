"""A run that keeps features is not said to be wrongly planned, whichever of its batches is the largest."""

from typing import Any

from judging import reviews


def check(bench: Any) -> None:
    rows = reviews(80)
    long = [{"text": " ".join([row["text"]] * 12), "label": row["label"]} for row in rows[60:]]
    data, held_out = bench.write("train.jsonl", *rows[:60]), bench.write("held_out.jsonl", *long)
    for adapter in ("head", "lora"):  # long rows are evaluated, and only short ones train
        run = bench.run(
            *("--adapter", adapter, "--model", bench.model("bert"), "--task", "text-classification"),
            *("-o", f"data.train={data}", "-o", f"data.eval={held_out}", "-o", "train.rehearse=true"),
            *("-o", "train.max_steps=12", "-o", "train.batch_size=16"),
        )
        (said,) = [text for text in run.notices if text.startswith("memory:")]
        assert "please report it" not in said, said
