from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ASKED = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def check(bench: Any) -> None:
    data = bench.write(
        "chats.jsonl",
        *[
            {"messages": [{"role": "user", "content": f"what is {word}?"}, {"role": "assistant", "content": word}]}
            for word in ASKED
        ],
    )
    given = ("--adapter", "lora", "--data", data, "-o", "train.evaluate_every=1", "-o", "dtype=bfloat16")
    stored = bench.run(*given, "--model", bench.model("chatml-nf4"))
    ours = bench.run(*given, "--model", bench.model("chatml"), "--quantize", "nf4", "-o", "check=none")
    assert (stored.before, stored.after) == (ours.before, ours.after)
    assert weights(stored.folder) == weights(ours.folder)
    assert stored.json("plan.json")["quantizer"] == "nf4"
    assert any("is stored as nf4 already" in notice for notice in stored.notices)

    named = ("--adapter", "lora", "--task", "chat", "-o", "dtype=bfloat16", "-o", "train.sequence_length=64", "--json")
    plans = [
        json.loads(bench.pefttool("plan", *named, "--model", bench.model(model), *more).out)
        for model, more in (("chatml-nf4", ()), ("chatml", ("--quantize", "nf4")))
    ]
    assert plans[0]["parts"] == plans[1]["parts"] and plans[0]["parts"]["weights"] > 0


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()
