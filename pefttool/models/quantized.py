"""The linear layers that a quantizer replaces: skeletons of them, and the plain layers again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pefttool.nn import parameters
from pefttool.toolkit.model_parts import transformers_part

if TYPE_CHECKING:
    from torch import nn

    from pefttool.api.quantizer import Quantizer
    from pefttool.models.quantization import Quantization


def put_skeletons(model: nn.Module, quantization: Quantization, names: Iterable[str]) -> None:
    """Replace linears of a model on the meta device by what they would be stored as, without weights."""
    import torch

    with torch.device("meta"):
        for name in names:
            linear: Any = model.get_submodule(name)
            model.set_submodule(name, quantization.skeleton(linear))


def stored_by(quantizer: Quantizer, model: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Those of these linear layers of an unquantised (or abstract) model that the quantizer stores in fewer bits."""
    layers: Any = ((name, model.get_submodule(name)) for name in names)
    return tuple(name for name, linear in layers if quantizer.stores(name, linear))


def dequantise(model: nn.Module, quantizer: Quantizer, names: Iterable[str]) -> None:
    """Replace the quantised linears among these by plain ones with the weights that they multiply by, on the CPU."""
    import torch
    from torch import nn

    for name in names:
        layer: Any = model.get_submodule(name)
        if parameters.is_plain(layer):
            continue
        with torch.device("meta"):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight = nn.Parameter(quantizer.dequantize(layer).cpu(), requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(name, plain.train(layer.training))
    model.cpu()
    part = transformers_part(model)
    library = getattr(part, "hf_quantizer", None)
    if library is not None:
        own = {
            type(operation) for conversion in library.get_weight_conversions() for operation in conversion.operations
        }
        read = getattr(part, "_weight_conversions", None) or []
        # What read packed weights is not to be undone when plain ones are saved.
        part._weight_conversions = [c for c in read if own.isdisjoint(map(type, getattr(c, "operations", ())))]
        library.remove_quantization_config(part)
