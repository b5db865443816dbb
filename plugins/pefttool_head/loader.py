"""The Python that loads a head-only model without pefttool: written beside head.safetensors, at most 15 lines."""

from __future__ import annotations

from typing import Any

from pefttool.toolkit import loader_code
from pefttool.toolkit.peft_folder import HEAD

LOADER = "load_head.py"
TRANSFORMERS = '''"""Defines `model`, in eval mode, with transformers alone: the base, and head.safetensors over it."""
from pathlib import Path
import transformers
from safetensors.torch import load_file

model = {constructor}
{prepared}tensors = load_file(Path(__file__).with_name({head!r}))
unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
if unexpected:
    raise SystemExit(f"this base has no {{unexpected[0]}}")
model.eval()
'''


def source(model: Any) -> str | None:
    """The loader's text, or None for a model that cannot be rebuilt without its own code.

    A class that is not transformers' may have `plain_loader(base) -> str`, which gives the text.
    """
    own = getattr(model, "plain_loader", None)
    if own is not None:
        text: str = own(loader_code.base(model))
        return text
    made = loader_code.constructor(model)
    if made is None:
        return None
    return TRANSFORMERS.format(constructor=made, head=HEAD, prepared=loader_code.as_trained(model, "model"))
