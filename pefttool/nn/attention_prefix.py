"""Trained keys and values that stand before a module's own, where every position sees them.

A module that attends has them as a submodule, `key_value_prefix`: called with its keys, it gives keys and values
[H_kv, P, D] in their dtype, or None while it is switched off. Our attention function (`attention.py`) asks for them at
every call, so that a cache holds none, and rows of a packed sequence see them each for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["NAME"]

#: The submodule's name.
NAME = "key_value_prefix"
#: Keys and values [H_kv, P, D] before a module's own.
Prefix = tuple[Tensor, Tensor]
_EXTENDED = "_pefttool_extended"


def of(module: nn.Module, key: Tensor) -> Prefix | None:
    """The prefix of a module that attends with keys [B, H_kv, S, D], or None."""
    held = getattr(module, NAME, None)
    given: Prefix | None = None if held is None else held(key)
    if given is not None and (given[0].shape[0], given[0].shape[2]) != (key.shape[1], key.shape[3]):
        has, wants = list(given[0].shape), [key.shape[1], given[0].shape[1], key.shape[3]]
        raise ValueError(f"{type(module).__name__} attends with keys {wants}, and its prefix has {has}")
    return given


def padded(
    prefix: Prefix,
    queries: int,
    key: Tensor,
    value: Tensor,
    causal: bool,
    hiding: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(key, value, mask, bias) of a batch of rows, with the prefix before each: S becomes P + S, and P is never hidden.

    `hiding` are the mask and the bias of the batch by itself.

    Without a mask, `causal` means that the last query sees the last key.
    """
    mask, bias = hiding
    if mask is None and causal and 1 < queries < key.shape[2]:  # as sdpa does: the rest is an empty static cache
        key, value = key[:, :, :queries], value[:, :, :queries]
        bias = bias if bias is None else bias[..., :queries]
    count = prefix[0].shape[1]
    first, second = (given.expand(len(key), *given.shape) for given in prefix)
    key, value = torch.cat([first, key], dim=2), torch.cat([second, value], dim=2)
    return key, value, _visible(mask, count, key.shape[2]), _visible(bias, count, key.shape[2])


def packed(prefix: Prefix, key: Tensor, value: Tensor, segments: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Keys and values [1, H_kv, T, D] of rows one behind another, with the prefix before each row."""
    joined = []
    for given, own in zip(prefix, (key, value), strict=True):
        rows = torch.split(own, list(segments), dim=2)
        joined.append(torch.cat([part for row in rows for part in (given[None], row)], dim=2))
    return joined[0], joined[1]


def lower_right(queries: int, keys: int, device: torch.device) -> Tensor:
    """[1, 1, T, S], true where a query sees a key: the last one sees all."""
    return torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril_(keys - queries)


def _visible(mask: Tensor | None, count: int, keys: int) -> Tensor | None:
    """A mask or a bias [.., T, S], with `count` columns before it that hide nothing and add nothing."""
    if mask is None:
        return None
    shared = not mask.requires_grad and not torch.compiler.is_compiling()
    before: Any = getattr(mask, _EXTENDED, None) if shared else None  # every layer is called with the same one
    if before is not None and before.shape[-1] == keys:
        extended: Tensor = before
        return extended
    own = mask.expand(*mask.shape[:-1], keys - count)
    seen = own.new_full((*own.shape[:-1], count), mask.dtype == torch.bool)
    extended = torch.cat([seen, own], dim=-1)
    if shared:
        setattr(mask, _EXTENDED, extended)
    return extended
