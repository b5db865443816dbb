"""A head that trained on kept features is worth what its run states."""

import json
from typing import Any

from judging import require_equal, reviews


def check(bench: Any) -> None:
    data = bench.write("train.jsonl", *reviews(80))
    run = bench.run(
        *("--adapter", "head", "--model", bench.model("bert"), "--data", data, "--task", "text-classification"),
        *("-o", "dtype=bfloat16", "-o", "train.max_steps=16"),
    )
    answer = bench.pefttool("eval", run.folder, "--json")
    require_equal(run.after, json.loads(answer.out))
    (evaluated,) = [event["metrics"] for event in run.events("Evaluated") if event["best"]][-1:]
    assert abs(evaluated["loss"] - run.after["loss"]) < 1e-2, "kept features round otherwise, and no more than that"
