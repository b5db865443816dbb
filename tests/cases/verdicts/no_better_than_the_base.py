"""What training made worse is said to be so."""

import json
from typing import Any

from judging import reviews

SENTENCE = "on the held-out rows the adapter is no better than the model as it was"


def check(bench: Any) -> None:
    texts = bench.write("texts.jsonl", *({"text": row["text"]} for row in reviews(24)))
    common = ("--adapter", "lora", "--model", bench.model("chatml"), "--data", texts, "--task", "causal-lm")
    worse = bench.run(*common, "-o", "train.learning_rate=30", "-o", "train.scheduler=constant")
    assert worse.after["loss"] > worse.before["loss"], "the case needs a run that does harm"
    assert worse.answer.text.count(f"warning: {SENTENCE}") == 2, "once where it happens, once with the results"
    assert any(text.startswith(SENTENCE) for text in worse.notices)
    assert worse.json("metrics.json")["improved"] is False

    better = bench.run(*common)
    assert better.after["loss"] < better.before["loss"] and SENTENCE not in better.answer.text
    assert better.json("metrics.json")["improved"] is True
    answer = bench.pefttool("run", "--out", "as-json", "--json", *common, "-o", "train.max_steps=1", "-o", "check=none")
    assert json.loads(answer.out)["improved"] is True
