"""Which modules take their attention function from transformers' `AttentionInterface`, and what keys they give it.

Nothing is called: a module's class tells. Works on real models and on those of the meta device.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pefttool.api.facts import KeyValues

if TYPE_CHECKING:
    from torch import nn

__all__ = ["find"]

#: What the sources of transformers call these things, commonest first.
KEY_SIZES = ("head_dim", "qk_head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
VALUE_SIZES = ("v_head_dim", *KEY_SIZES)
PROJECTIONS = ("k_proj", "key", "k_lin", "k", "linear_k")
KEY_HEADS = ("num_key_value_heads",)
HEADS = ("num_heads", "num_attention_heads", "n_heads")


def attends(module: nn.Module) -> bool:
    """Whether the module's attention function can be chosen: its forward asks transformers' interface for it."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def fixed(model: nn.Module) -> str | None:
    """Why the attention of `model` cannot be exchanged, or None."""
    modules = list(_attending(model))
    if not modules:
        return f"the attention of {type(model).__name__} is its own, not one of transformers' interchangeable ones"
    for _, _, owner in modules:
        if owner is None or not owner._can_set_attn_implementation() or not getattr(owner, "_supports_sdpa", False):
            # Beyond PyTorch's own: soft caps, sinks, learnt biases.
            return f"{type(owner or model).__name__} computes attention in a way of its own"
    return None


def find(model: nn.Module) -> tuple[KeyValues, ...]:
    """The modules whose attention function can be chosen, in order; () where `fixed` says why not.

    Left out are modules that do not say how many heads their keys have, and of what size.
    """
    if fixed(model) is not None:
        return ()
    found = []
    for name, module, owner in _attending(model):
        key_size, value_size = _first(module, KEY_SIZES), _first(module, VALUE_SIZES)
        heads = _heads(module, key_size, owner.config) if key_size else None
        if heads and key_size and value_size:
            found.append(KeyValues(name, heads, key_size, value_size))
    return tuple(found)


def _attending(model: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
    """(name, module, the transformers model that it is part of) of every module that `attends`."""
    from transformers import PreTrainedModel

    owners: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            owners[name] = module
        elif attends(module):
            around = [path for path in owners if not path or name.startswith(f"{path}.")]
            yield name, module, owners[max(around, key=len)] if around else None


def _heads(module: nn.Module, key_size: int, config: Any) -> int | None:
    """How many heads keys have: fewer than queries, perhaps."""
    for name in PROJECTIONS:
        projected = getattr(getattr(module, name, None), "out_features", None)
        if isinstance(projected, int) and projected % key_size == 0:
            return projected // key_size
    shared = _first(module, ("num_key_value_groups",)) or 1
    asked = _first(module, HEADS)
    return (
        _first(module, KEY_HEADS) or (asked and asked // shared) or _first(config, KEY_HEADS) or _first(config, HEADS)
    )


def _first(holder: Any, names: Sequence[str]) -> int | None:
    for name in names:
        value = getattr(holder, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
