"""Attention over rows that lie one behind another in one sequence: every row attends to itself alone.

Registered with transformers as an attention implementation, and chosen for one model; nothing is patched. A call
without `segments` (generation, padded batches) is passed on to transformers' own `sdpa`.

On a CPU a row's attention is three plain products: PyTorch's fused kernel has a backward pass there that is several
times slower at the lengths people fine-tune on. Its probabilities are computed again in the backward pass, so that
nothing of size T x T is kept. Elsewhere every row goes through PyTorch's `scaled_dot_product_attention`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

#: transformers knows our attention by this name (`config._attn_implementation`).
NAME = "pefttool"
#: Options of some models that change what attention computes, and that are not built here: named when refused.
UNKNOWN = ("softcap", "s_aux", "position_bias")
#: Rows up to this long have their probabilities made whole on a CPU: [heads, T, T] in float32.
WHOLE = 1024


def install(model: nn.Module) -> str | None:
    """Make `model`'s attention able to isolate rows; returns why it cannot, or None."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    choose = getattr(model, "set_attn_implementation", None)
    if choose is None:
        return f"{type(model).__name__} does not let its attention be chosen"
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if not model._can_set_attn_implementation() or not getattr(model, "_supports_sdpa", False):  # type: ignore[operator]
        return f"the attention of {type(model).__name__} is its own, not one of transformers' interchangeable ones"
    choose(NAME)
    return None


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
    """query [1, H, T, D], key and value [1, H_kv, T, D] -> ([1, T, H, D], None); `segments` are the rows' lengths.

    Raises ValueError for an option that this attention does not have.
    """
    if segments is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output: tuple[Tensor, None] = sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            sliding_window=sliding_window,
            **options,
        )
        return output
    for name in UNKNOWN:
        if options.get(name) is not None:
            raise ValueError(f"packed rows cannot have attention with {name!r}")
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if sliding_window is not None and (not causal or sliding_window >= max(segments)):
        sliding_window = None  # no row reaches beyond it
    whole = query.device.type == "cpu" and dropout == 0 and sliding_window is None and max(segments) <= WHOLE
    if whole:
        result: Tensor = _Whole.apply(query, key, value, tuple(segments), scale, causal)  # type: ignore[no-untyped-call]
        return result.transpose(1, 2), None
    return _fused(query, key, value, segments, scale, causal, dropout, sliding_window).transpose(1, 2), None


def _ranges(segments: Sequence[int]) -> Iterator[slice]:
    start = 0
    for length in segments:
        yield slice(start, start + length)
        start += length


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Sequence[int],
    scale: float,
    causal: bool,
    dropout: float,
    window: int | None,
) -> Tensor:
    parts = []
    for rows in _ranges(segments):
        length = rows.stop - rows.start
        mask = None
        if window is not None and length > window:
            at = torch.arange(length, device=query.device)
            back = at[:, None] - at[None, :]
            mask = (back >= 0) & (back < window)
        parts.append(
            scaled_dot_product_attention(
                query[:, :, rows],
                key[:, :, rows],
                value[:, :, rows],
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=causal and mask is None,
                scale=scale,
                enable_gqa=key.shape[1] != query.shape[1],
            )
        )
    return torch.cat(parts, dim=2)


class _Whole(torch.autograd.Function):
    """Row by row: P = softmax(scale Q K^T), O = P V; heads that share keys are products of one batch."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: tuple[int, ...], scale: float, causal: bool
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.segments, ctx.scale, ctx.causal = segments, scale, causal
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        for rows in _ranges(segments):
            q, k, v = (_by_key_head(t, rows, key.shape[1]) for t in (query, key, value))
            _put(output, rows, _probabilities(q, k, rows, scale, causal).to(v.dtype) @ v)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        heads = key.shape[1]
        made = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (query, key, value)]
        for rows in _ranges(ctx.segments):
            q, k, v, g = (_by_key_head(t, rows, heads) for t in (query, key, value, gradients[0]))
            p = _probabilities(q, k, rows, ctx.scale, ctx.causal)
            d = (g @ v.transpose(1, 2)).float()
            # dS = P * (dP - sum(dP * P)), which PyTorch has as one pass
            s = torch._softmax_backward_data(d, p, -1, torch.float32).mul_(ctx.scale).to(q.dtype)
            _put(made[2], rows, p.to(g.dtype).transpose(1, 2) @ g)
            _put(made[0], rows, s @ k)
            _put(made[1], rows, s.transpose(1, 2) @ q)
        return (*made, None, None, None)


def _by_key_head(tensor: Tensor, rows: slice, heads: int) -> Tensor:
    """[1, H, T, D] -> [H_kv, (H / H_kv) * t, D] of one row, contiguous."""
    return tensor[0, :, rows].reshape(heads, -1, tensor.shape[-1])


def _put(target: Tensor, rows: slice, part: Tensor) -> None:
    """The inverse of `_by_key_head`."""
    target[0, :, rows] = part.view(target.shape[1], -1, target.shape[-1])


def _probabilities(q: Tensor, k: Tensor, rows: slice, scale: float, causal: bool) -> Tensor:
    """[H_kv, g * t, t] in float32: softmax over the keys that each position may see."""
    length = rows.stop - rows.start
    scores = (q @ k.transpose(1, 2)).float().mul_(scale)
    if causal:
        hidden = torch.ones(length, length, dtype=torch.bool, device=q.device).triu_(1)
        scores.view(-1, length, length).masked_fill_(hidden, float("-inf"))
    return scores.softmax(-1)
