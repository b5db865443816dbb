from __future__ import annotations

import json
from typing import Any


def check(bench: Any) -> None:
    rows = [{"text": f"take four and five, and count to {i}"} for i in range(12)]
    data, held_out = bench.write("rows.jsonl", *rows[:9]), bench.write("held-out.jsonl", *rows[9:])
    given = ("--adapter", "lora", "--model", bench.model("deepseekv3"), "--task", "causal-lm", "--data", data)
    run = bench.run(*given, "-o", f"data.eval={held_out}", "--quantize", "nf4", "-o", "check=process")
    assert any("onto quantised ones, only pefttool does" in notice for notice in run.notices), run.notices
    answer = bench.pefttool("eval", run.folder, "--data", held_out, "--json")
    assert answer.code == 0, answer.text
    found = json.loads(answer.out)
    assert abs(found["loss"] - run.after["loss"]) < 1e-6, (run.after, found)
