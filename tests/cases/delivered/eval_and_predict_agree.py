"""The same rows get the same answers from `eval` and from `predict`, in the default precision of this machine."""

import json
import math
from typing import Any

from judging import reviews


def check(bench: Any) -> None:
    rows = reviews(460)
    data, others = bench.write("train.jsonl", *rows[:60]), bench.write("others.jsonl", *rows[60:])
    run = bench.run(
        *("--adapter", "lora", "--model", bench.model("bert"), "--data", data, "--task", "text-classification"),
        *("-o", "dtype=bfloat16", "-o", "train.max_steps=12", "-o", "train.learning_rate=0.01"),
    )
    judged = json.loads(bench.pefttool("eval", run.folder, "--data", others, "--json").out)
    answers = [json.loads(line) for line in bench.pefttool("predict", run.folder, "--data", others).out.splitlines()]
    right = [answer["label"] == row["label"] for answer, row in zip(answers, rows[60:], strict=True)]
    assert judged["accuracy"] == sum(right) / len(right)
    of_the_truth = [answer["scores"][row["label"]] for answer, row in zip(answers, rows[60:], strict=True)]
    loss = sum(-math.log(score) for score in of_the_truth) / len(right)
    assert abs(loss - judged["loss"]) < 1e-6, "the rows were in other batches"
    odds = [math.log(score / (1 - score)) for score in of_the_truth]
    assert len({round(o, 5) for o in odds}) > 380, "of 400 rows hardly two have the same score"
