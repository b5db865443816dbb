from __future__ import annotations

from typing import Any


def check(bench: Any) -> None:
    from torch import nn
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(bench.model("deepseekv3"))
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(p.numel() for name, p in model.named_parameters() if ".mlp.experts." in name)
    stored = sum(m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head")
    given = ("plan", "--adapter", "lora", "--model", bench.model("deepseekv3"), "--task", "causal-lm")
    given = (*given, "-o", "train.sequence_length=32", "-o", "dtype=bfloat16")
    left_alone = f"{experts:,} of {total:,} parameters are expert tensors, which are no linear layers: LoRA leaves them"
    plain = bench.pefttool(*given)
    assert plain.code == 0 and left_alone in plain.text, plain.text
    assert "stay in bfloat16" not in plain.text
    quantised = bench.pefttool(*given, "--quantize", "nf4")
    assert left_alone in quantised.text
    said = f"{total - stored:,} of {total:,} parameters stay in bfloat16, as 'nf4' leaves them: "
    assert said in quantised.text, quantised.text
    assert f"expert tensors ({experts / total:.0%})" in quantised.text
