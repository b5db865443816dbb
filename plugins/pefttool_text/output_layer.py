"""The loss of a language model without its logits, where the output layer is frozen, plain, and the last thing done.

Nothing is patched: for one call, two hooks on this model's own output layer take its input away and hand it back in
place of the logits. So the call goes through whatever wraps the model (peft's adapters, prefixes, autocast).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pefttool_text.batching import IGNORE
from pefttool_text.packed import model_inputs

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)

#: Tokens of the row on which a model is asked, once, what it does with its logits.
PROBE_TOKENS = 2

#: By model: why its logits are not the output layer's own, or None. Found out once, for it costs a short forward pass.
_changes: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()
#: By model: the reason that the user was told last.
_told: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def summed_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor | None:
    """The summed cross-entropy over the labelled tokens of `[B, T]` ids, float32; the logits never exist whole.

    None where they have to: the reason is logged, once for a model.
    """
    from torch.nn.functional import pad

    from pefttool.nn.embedding_offload import SlicedLinear
    from pefttool_kernels import cross_entropy, sliced_cross_entropy

    layer = _output_layer(model)
    reason = _unsuitable(layer) or _changed(model, layer, batch)
    if reason is not None:
        _tell(model, reason)
        return None
    with _bypassed(layer) as inputs:
        returned = _forward(model, batch).logits
    if len(inputs) != 1 or returned is not inputs[0]:
        raise RuntimeError(
            f"{type(model).__name__} returned its output layer's logits unchanged once, and does no more"
        )
    hidden = inputs[0]
    # Position t predicts token t + 1; the last one predicts nothing.
    targets = pad(batch["labels"][:, 1:], (0, 1), value=IGNORE)
    how = sliced_cross_entropy if isinstance(layer, SlicedLinear) else cross_entropy
    return how.linear_cross_entropy(hidden.flatten(0, -2), layer.weight, targets.flatten(), layer.bias, IGNORE)


def _forward(model: nn.Module, batch: Mapping[str, Tensor]) -> Any:
    return model(**model_inputs(batch), use_cache=False)


def _output_layer(model: nn.Module) -> Any:
    """What the model itself names as its output layer, or None."""
    get = getattr(_bare(model), "get_output_embeddings", None)
    return get() if get is not None else None


def _bare(model: Any) -> Any:
    """The model beneath a wrapper for several processes."""
    while not hasattr(model, "get_output_embeddings") and hasattr(model, "module"):
        model = model.module
    return model


def _unsuitable(layer: Any) -> str | None:
    """Why this output layer's product and loss cannot be one operation, or None."""
    import torch
    from torch import nn

    from pefttool.nn.embedding_offload import SlicedLinear

    if layer is None:
        return "the model names no output layer"
    if type(layer) not in (nn.Linear, SlicedLinear):
        return f"the output layer is a {type(layer).__name__}, not a plain linear"
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in layer.parameters()):
        return "the output layer trains"
    if not isinstance(layer.weight, nn.Parameter) or not layer.weight.is_floating_point():
        return f"the output layer's weight is a {type(layer.weight).__name__}, not a plain parameter"
    if "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks:
        return "the output layer has hooks of its own"
    return None


def _changed(model: nn.Module, layer: nn.Linear, batch: Mapping[str, Tensor]) -> str | None:
    """Whether the model scales, caps or masks what comes out of its output layer: asked with two tokens, once."""
    bare = _bare(model)
    if bare not in _changes:
        _changes[bare] = _probe(model, layer, batch)
    return _changes[bare]


def _probe(model: nn.Module, layer: nn.Linear, batch: Mapping[str, Tensor]) -> str | None:
    """An ordinary pass: are the logits that the model returns the very tensor that its output layer made?"""
    import torch

    from pefttool.toolkit.random_numbers import forked

    seen: list[tuple[Tensor, int]] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append((output, output._version)))
    ids = batch["input_ids"][:1, :PROBE_TOKENS]
    row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    try:
        # Dropout draws: the run's random state must be what it would have been. Inference tensors have no version.
        with forked(ids.device), torch.inference_mode(False), torch.no_grad():
            logits = _forward(model, row).logits
    finally:
        handle.remove()
    if len(seen) != 1:
        return f"the model calls its output layer {len(seen)} times"
    made, version = seen[0]
    if logits is not made or logits._version != version:
        return "the model changes its logits after the output layer (a scale, a soft cap)"
    return None


@contextmanager
def _bypassed(layer: nn.Linear) -> Iterator[list[Tensor]]:
    """For the calls within, `layer` returns what it is given, and multiplies nothing; its inputs are collected."""
    inputs: list[Tensor] = []

    def take(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        inputs.append(arguments[0])
        return (arguments[0][..., :0, :],)  # no rows: the product that follows costs nothing

    def give(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return inputs[-1]

    handles = (layer.register_forward_pre_hook(take), layer.register_forward_hook(give))
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _tell(model: nn.Module, reason: str) -> None:
    if _told.get(model) != reason:
        _told[model] = reason
        log.warning("the loss needs whole logits, and memory for them: %s", reason)
