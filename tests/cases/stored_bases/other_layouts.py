from __future__ import annotations

from typing import Any


def check(bench: Any) -> None:
    rows = [{"text": f"take four and five, and count to {i}"} for i in range(12)]
    data, held_out = bench.write("rows.jsonl", *rows[:9]), bench.write("held-out.jsonl", *rows[9:])
    given = ("--adapter", "lora", "--task", "causal-lm", "--data", data, "-o", f"data.eval={held_out}")

    flat = bench.run(*given, "--model", bench.model("chatml-fp4"), "-o", "dtype=bfloat16", "-o", "check=process")
    assert flat.json("plan.json")["quantizer"] == "fp4"
    assert [notice for notice in flat.notices if "answers alike without pefttool" in notice], flat.notices

    some = bench.run(*given, "--model", bench.model("chatml-nf4-some"), "-o", "dtype=float32", "-o", "check=none")
    merged = bench.pefttool("merge", some.folder, "--save-as", "float32", "--data", held_out)
    assert merged.code == 0, merged.text
    assert abs(of_the_merged(some.folder / "merged", rows[9:]) - some.after["loss"]) < 1e-5, some.after
    refused = bench.pefttool("merge", some.folder, "--into", "original", "--out", bench.folder / "other")
    assert refused.code == 2 and "is stored as nf4 and holds no original weights" in refused.text


def of_the_merged(folder: Any, rows: list[dict[str, str]]) -> float:
    """The held-out loss in plain transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert not hasattr(model.config, "quantization_config") and model.dtype == torch.float32
    total, count = 0.0, 0
    for row in rows:
        tokens = torch.tensor([[*tokenizer(row["text"]).input_ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            logits = model.eval()(input_ids=tokens).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
        count += tokens.shape[1] - 1
    return total / count
