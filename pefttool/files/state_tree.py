"""A nested state as named tensors and JSON: what checkpoints hold, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor


def flatten(state: Any, prefix: str = "", named: dict[int, str] | None = None) -> tuple[dict[str, Tensor], Any]:
    """A nested state (optimiser, scheduler, scaler) as named tensors and a JSON skeleton that refers to them.

    A tensor that occurs again (bitsandbytes' tables) is stored once; `named` are those met so far, by identity.
    """
    import torch

    named = {} if named is None else named
    if isinstance(state, torch.Tensor):
        if id(state) in named:
            return {}, {"$tensor": named[id(state)]}
        named[id(state)] = prefix
        return {prefix: state.detach().cpu().contiguous()}, {"$tensor": prefix}
    if isinstance(state, Mapping):
        tensors, pairs = {}, []
        for key, value in state.items():
            inner, skeleton = flatten(value, f"{prefix}/{key}", named)
            tensors.update(inner)
            pairs.append([key, skeleton])
        return tensors, {"$map": pairs}
    if isinstance(state, list | tuple):
        tensors, items = {}, []
        for i, value in enumerate(state):
            inner, skeleton = flatten(value, f"{prefix}/{i}", named)
            tensors.update(inner)
            items.append(skeleton)
        return tensors, {"$list": items}
    if state is None or isinstance(state, bool | int | float | str):
        return {}, state
    raise RunError(
        f"checkpoint: {prefix or 'state'} is a {type(state).__name__}, which cannot be stored without pickle"
    )


def unflatten(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `flatten`; tuples come back as lists."""
    if isinstance(skeleton, dict):
        if "$tensor" in skeleton:
            return tensors[skeleton["$tensor"]]
        if "$map" in skeleton:
            return {key: unflatten(value, tensors) for key, value in skeleton["$map"]}
        return [unflatten(value, tensors) for value in skeleton["$list"]]
    return skeleton
