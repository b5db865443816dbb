"""The output layers of a masked language model: whether a model folder has them, and their logits where it is asked.

Sentence encoders such as MiniLM are published without: the layers are then new, and the core trains and saves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool_text import encoder

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Where `load` leaves the names of new modules on the model that it made.
NEW = "new_output_modules"


def new_modules(model: Any, source: Any) -> tuple[str, ...]:
    """Names of the modules beside the backbone of which the folder has no tensor; the layer that is tied to the
    embeddings is none of them."""
    stored = _stored(source.path)
    if stored is None:  # a config alone, to plan with
        said = " ".join(getattr(source.config, "architectures", None) or ())
        stored = () if "MaskedLM" not in said and "PreTraining" not in said else None
    output = model.get_output_embeddings()
    return tuple(
        name
        for head in encoder.head_modules(model)
        if stored is not None and not any(tensor.startswith(f"{head}.") for tensor in stored)
        for name in _without(head, model.get_submodule(head), output)
    )


def _without(name: str, module: Any, output: Any) -> Iterator[str]:
    """`name`, or the parts of it that do not hold `output`."""
    if module is output or not any(True for _ in module.parameters()):
        return
    if output is None or all(part is not output for part in module.modules()):
        yield name
        return
    for child, part in module.named_children():
        yield from _without(f"{name}.{child}", part, output)


def _stored(folder: Path) -> tuple[str, ...] | None:
    """Names of the tensors in a model folder; None if it has no weights."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    names: list[str] = []
    for path in files:
        with safe_open(path, "np") as tensors:
            names += tensors.keys()
    return tuple(names) if files else None


def logits(model: nn.Module, inputs: Mapping[str, Tensor], asked: Tensor) -> Tensor:
    """The logits `[N, V]` at the N positions of `[B, T]` that are `asked`.

    The largest product of a small model is its output layer's, and most tokens are not asked: it is handed those only.
    """
    get = getattr(model, "get_output_embeddings", None)
    layer = get() if get is not None else None
    if layer is None:
        found: Tensor = model(**inputs).logits[asked]
        return found

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (arguments[0][asked], *arguments[1:]) if arguments[0].shape[:2] == asked.shape else arguments

    handle = layer.register_forward_pre_hook(keep)
    try:
        found = model(**inputs).logits
    finally:
        handle.remove()
    return found if found.ndim == 2 else found[asked]
