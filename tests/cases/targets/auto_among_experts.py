from __future__ import annotations

from typing import Any

ROWS, HELD_OUT = (
    [{"text": f"take four and five, and count to {i}. are you sure? yes, quite sure"} for i in numbers]
    for numbers in (range(12), range(12, 18))
)


def check(bench: Any) -> None:
    import peft
    import torch
    from safetensors import safe_open
    from torch import nn
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data, held_out = bench.write("rows.jsonl", *ROWS), bench.write("held-out.jsonl", *HELD_OUT)
    given = ("--adapter", "lora", "--model", bench.model("deepseekv3"), "--task", "causal-lm", "--data", data)
    run = bench.run(*given, "-o", f"data.eval={held_out}", "-o", "dtype=float32")
    adapter = run.folder / "adapter"
    base = AutoModelForCausalLM.from_pretrained(bench.model("deepseekv3"))
    wanted = {n for n, module in base.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        named = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in file.keys()}  # noqa: SIM118
        ranks = {file.get_slice(key).get_shape()[0] for key in file.keys() if "lora_A" in key}  # noqa: SIM118
    assert named == wanted and ranks == {16}

    plain = peft.PeftModel.from_pretrained(base, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(bench.model("deepseekv3"))
    total, count = 0.0, 0
    with torch.no_grad():
        for row in HELD_OUT:
            tokens = torch.tensor([[*tokenizer(row["text"]).input_ids, tokenizer.eos_token_id]])
            logits = plain(input_ids=tokens).logits[0, :-1]
            total += float(nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
            count += tokens.shape[1] - 1
    assert abs(total / count - run.after["loss"]) < 1e-5, (total / count, run.after)
    assert abs(run.before["loss"] - run.after["loss"]) > 1e-3
