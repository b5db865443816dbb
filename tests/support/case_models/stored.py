"""Models whose folders hold quantised weights, as many on the hub do."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import case_models
from case_models.building import store

FOUR = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "chatml-nf4": ("chatml", {**FOUR, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}),
    "chatml-fp4": ("chatml", {**FOUR, "bnb_4bit_quant_type": "fp4"}),
    # As Unsloth's dynamic ones: some layers stay as they were.
    "chatml-nf4-some": (
        "chatml",
        {
            **FOUR,
            "bnb_4bit_quant_type": "nf4",
            "llm_int8_skip_modules": ["lm_head", "model.layers.0.mlp", "model.layers.1.self_attn.q_proj"],
        },
    ),
    "chatml-int8": ("chatml", {"load_in_8bit": True}),
    "bert-nf4": ("bert", {**FOUR, "bnb_4bit_quant_type": "nf4"}),
}


def quantised(source: str, how: dict[str, Any], folder: Path) -> None:
    """The model `source`, quantised by bitsandbytes itself and saved by transformers."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    original = case_models.folder(source)
    kind = AutoModelForCausalLM if source == "chatml" else AutoModel
    model = kind.from_pretrained(
        original, quantization_config=BitsAndBytesConfig(**how), dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    store(folder, model, AutoTokenizer.from_pretrained(original))


def claiming(how: dict[str, Any], folder: Path) -> None:
    """A config that says that its weights are stored so; there are none."""
    config = json.loads((case_models.folder("chatml") / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": how}), encoding="utf-8")


METHODS = ("gptq", "awq", "fp8", "mxfp4", "hqq", "compressed-tensors", "aqlm", "torchao")
MAKERS = {
    **{name: partial(quantised, *kind) for name, kind in KINDS.items()},
    **{f"stored-{method}": partial(claiming, {"quant_method": method, "bits": 4}) for method in METHODS},
}
