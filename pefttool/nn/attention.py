"""Attention over rows that lie one behind another in one sequence: every row attends to itself alone.

Registered with transformers as an attention implementation, and chosen for one model; nothing is patched. Padded
batches have it too where it is faster; all other calls (generation, other devices) go to transformers' own `sdpa`.
Modules with trained keys and values before their own have them at every call (`prefixed.py`).

On a CPU attention is three plain products: PyTorch's fused kernel has a backward pass there that is several times
slower at the lengths people fine-tune on. Its probabilities are computed again in the backward pass, so that nothing
of size T x T is kept but what dropout drew. Elsewhere packed rows go one by one through PyTorch's
`scaled_dot_product_attention`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from pefttool.nn import attention_modules, attention_prefix, placement
from pefttool.nn.cpu_attention import Block, Softmax, batch_blocks, whole

__all__ = ["install", "packed_mask"]

#: transformers knows our attention by this name (`config._attn_implementation`).
NAME = "pefttool"
#: Options of some models that change what attention computes, and that are not built here: named when refused.
UNKNOWN = ("softcap", "s_aux", "position_bias")
#: Rows up to this long have their probabilities made whole on a CPU: [heads, T, T] in float32.
WHOLE = 1024

#: Queries of a packed row that are taken at a time: of the keys behind the last of them nothing is computed.
TILE = 128


def install(model: nn.Module) -> str | None:
    """Make `model`'s attention able to isolate rows; returns why it cannot, or None."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    choose = getattr(model, "set_attn_implementation", None)
    if choose is None:
        return f"{type(model).__name__} does not let its attention be chosen"
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    reason = attention_modules.fixed(model)
    if reason is None:
        choose(NAME)
    return reason


def packed_mask(device: torch.device) -> Tensor:
    """What a packed call gives as `attention_mask`: 4-D masks are handed through, so that transformers builds none."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    segments: Sequence[int] | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """query [B, H, T, D], key and value [B, H_kv, S, D] -> ([B, T, H, D], None).

    `segments` are the lengths of rows that lie one behind another (B is 1, S is T); without them, `attention_mask`
    [B, 1, T, S] hides padding. What `module` has before its own keys is seen by every query, of every row.
    Raises ValueError for an option that packed rows cannot have.
    """
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    how = Softmax(query.shape[-1] ** -0.5 if scaling is None else scaling, causal, dropout)
    unknown = [name for name in UNKNOWN if options.get(name) is not None]
    prefix = attention_prefix.of(module, key)
    before = 0 if prefix is None else prefix[0].shape[1]
    if segments is None:
        if prefix is not None:
            hiding = attention_mask, options.get("position_bias")
            key, value, attention_mask, bias = attention_prefix.padded(
                prefix, query.shape[2], key, value, causal, hiding
            )
            options = options if bias is None else {**options, "position_bias": bias}
        if unknown or not _whole_is_faster(query, key, attention_mask, causal, module.training, before):
            from transformers.integrations.sdpa_attention import sdpa_attention_forward

            if prefix is not None and causal and attention_mask is None:
                attention_mask = attention_prefix.lower_right(query.shape[2], key.shape[2], key.device)
            more = {**options, "scaling": scaling, "is_causal": is_causal, "sliding_window": sliding_window}
            output: tuple[Tensor, None] = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, **more
            )
            return output
        blocks = batch_blocks(query, key)
        return whole(query, key, value, attention_mask, blocks, how), None
    if unknown:
        raise ValueError(f"packed rows cannot have attention with {unknown[0]!r}")
    if sliding_window is not None and (not causal or sliding_window >= max(segments)):
        sliding_window = None  # no row reaches beyond it
    if prefix is not None:
        key, value = attention_prefix.packed(prefix, key, value, segments)
    if placement.kind(query) == "cpu" and sliding_window is None and max(segments) <= WHOLE:
        blocks = tuple(_row_blocks(segments, causal, before))
        return whole(query, key, value, None, blocks, how), None
    return _fused(query, key, value, _Rows(segments, sliding_window, before), how).transpose(1, 2), None


def _whole_is_faster(
    query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, training: bool = False, before: int = 0
) -> bool:
    """Padded rows on a CPU that need gradients, and whose mask is one that hides; `before` of the keys are a prefix.

    Training without gradients is the first pass of a reentrant checkpoint: it has to do what the second will.
    """
    if mask is None:
        known = not causal or key.shape[2] == query.shape[2] + before
    else:
        known = mask.dtype == torch.bool
    needs = query.requires_grad or key.requires_grad if torch.is_grad_enabled() else training
    return known and needs and placement.kind(query) == "cpu" and key.shape[2] <= WHOLE


def _ranges(segments: Sequence[int]) -> Iterator[slice]:
    start = 0
    for length in segments:
        yield slice(start, start + length)
        start += length


def _row_blocks(segments: Sequence[int], causal: bool, before: int = 0) -> Iterator[Block]:
    """Of every packed row the tokens, `TILE` at a time where each sees only what is before it.

    Among the keys, every row begins with `before` others.
    """
    for index, row in enumerate(_ranges(segments)):
        step = TILE if causal else row.stop - row.start
        for start in range(row.start, row.stop, step):
            stop = min(start + step, row.stop)
            yield slice(0, 1), slice(start, stop), slice(row.start + index * before, stop + (index + 1) * before)


class _Rows(NamedTuple):
    """Packed rows: their lengths, how far back a position sees (None: to the start), and the keys before each row."""

    lengths: Sequence[int]
    window: int | None
    before: int


def _fused(query: Tensor, key: Tensor, value: Tensor, rows: _Rows, how: Softmax) -> Tensor:
    lengths, window, before = rows
    # Split, not sliced: of every slice the backward pass would fill a gradient as long as all rows together.
    queries = query.split_with_sizes(list(lengths), dim=2)
    keys, values = (t.split_with_sizes([length + before for length in lengths], dim=2) for t in (key, value))
    parts = []
    for length, q, k, v in zip(lengths, queries, keys, values, strict=True):
        mask = None
        if window is not None and length > window:
            at = torch.arange(length, device=query.device)
            back = at[:, None] - at[None, :]
            mask = pad((back >= 0) & (back < window), (before, 0), value=True)
        elif how.causal and before:
            mask = attention_prefix.lower_right(length, length + before, query.device)
        parts.append(
            scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=how.dropout,
                is_causal=how.causal and mask is None,
                scale=how.scale,
                enable_gqa=key.shape[1] != query.shape[1],
            )
        )
    return torch.cat(parts, dim=2)
