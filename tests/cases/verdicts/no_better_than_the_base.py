"""What training made worse is said to be so."""

import json
from typing import Any

from judging import reviews

SENTENCE = "on the held-out rows the adapter is no better than the model as it was"


def check(bench: Any) -> None:
    texts = [{"text": row["text"]} for row in reviews(24)]
    train, others = bench.write("train.jsonl", *texts[:12]), bench.write("others.jsonl", *texts[12:])
    strange = bench.write("strange.jsonl", *({"text": f"are you sure? {i} and {i}"} for i in range(12)))
    common = ("--adapter", "lora", "--model", bench.model("chatml"), "--task", "causal-lm", "-o", f"data.train={train}")
    common = (*common, "-o", "check=none")
    hard = ("-o", "train.learning_rate=0.03", "-o", "train.max_steps=24", "-o", "train.evaluate_every=24")
    worse = bench.run(*common, "-o", f"data.eval={strange}", *hard)
    assert worse.after["loss"] > worse.before["loss"], (
        f"the case needs a run that does harm: {worse.before} {worse.after}"
    )
    assert worse.answer.text.count(f"warning: {SENTENCE}") == 2, "once where it happens, once with the results"
    assert any(text.startswith(SENTENCE) for text in worse.notices)
    assert worse.json("metrics.json")["improved"] is False

    better = bench.run(*common, "-o", f"data.eval={others}")
    assert better.after["loss"] < better.before["loss"] and SENTENCE not in better.answer.text
    assert better.json("metrics.json")["improved"] is True
    answer = bench.pefttool(
        *("run", "--out", "as-json", "--json", *common, "-o", f"data.eval={strange}", *hard),
        *("-o", "train.rehearse=false"),
    )
    assert json.loads(answer.out)["improved"] is False
