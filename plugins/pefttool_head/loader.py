"""The Python that loads a head-only model without pefttool: written beside head.safetensors, at most 15 lines."""

from __future__ import annotations

import json
from typing import Any

from pefttool.peft_folder import HEAD

LOADER = "load_head.py"
TRANSFORMERS = '''"""Defines `model`, in eval mode, with transformers alone: the base, and head.safetensors over it."""
from pathlib import Path
import transformers
from safetensors.torch import load_file

model = transformers.{architecture}.from_pretrained({base!r}, {arguments})
tensors = load_file(Path(__file__).with_name({head!r}))
unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
if unexpected:
    raise SystemExit(f"this base has no {{unexpected[0]}}")
model.eval()
'''


def source(model: Any) -> str | None:
    """The loader's text, or None for a model that cannot be rebuilt without its own code.

    A class that is not transformers' may have `plain_loader(base) -> str`, which gives the text.
    """
    import transformers

    config = getattr(model, "config", None)
    base = str(getattr(config, "_name_or_path", ""))
    own = getattr(model, "plain_loader", None)
    if own is not None:
        text: str = own(base)
        return text
    architecture = type(model).__name__
    if getattr(transformers, architecture, None) is not type(model):
        return None
    arguments: dict[str, Any] = {"dtype": "float32"}
    labels = getattr(config, "id2label", None)
    if architecture.endswith("Classification") and labels:
        arguments["id2label"] = dict(labels)
        arguments["label2id"] = {label: index for index, label in labels.items()}
    if not getattr(config, "tie_word_embeddings", True):
        arguments["tie_word_embeddings"] = False
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        given = {k: v for k, v in quantised.to_dict().items() if not k.startswith("_")}
        arguments["quantization_config"] = json.loads(json.dumps(given, default=str))  # plain values, no enums
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return TRANSFORMERS.format(architecture=architecture, base=base, arguments=written, head=HEAD)
