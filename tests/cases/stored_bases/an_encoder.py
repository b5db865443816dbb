from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file


def check(bench: Any) -> None:
    texts = {"good": "a gem of a film, warm and funny", "bad": "dull, slow and far too long"}
    rows = [{"text": f"{text} {i}", "label": label} for i in range(8) for label, text in texts.items()]
    data, held_out = bench.write("rows.jsonl", *rows[:12]), bench.write("held-out.jsonl", *rows[12:])
    given = ("--adapter", "head", "--model", bench.model("bert-nf4"), "--data", data)
    run = bench.run(*given, "-o", f"data.eval={held_out}", "-o", "check=process")
    assert run.json("plan.json")["quantizer"] == "nf4"
    assert not [notice for notice in run.notices if " lacks " in notice], "nothing that is used is missing"
    head = load_file(run.folder / "adapter" / "head.safetensors")
    assert head and {tensor.dtype for tensor in head.values()} == {torch.float32}
    assert [notice for notice in run.notices if "answers alike without pefttool" in notice], run.notices
