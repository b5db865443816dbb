"""Attention over rows that lie one behind another in one sequence: every row attends to itself alone.

Registered with transformers as an attention implementation, and chosen for one model; nothing is patched. Padded
batches have it too where it is faster; all other calls (generation, other devices) go to transformers' own `sdpa`.

On a CPU attention is three plain products: PyTorch's fused kernel has a backward pass there that is several times
slower at the lengths people fine-tune on. Its probabilities are computed again in the backward pass, so that nothing
of size T x T is kept but what dropout drew. Elsewhere packed rows go one by one through PyTorch's
`scaled_dot_product_attention`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pefttool import target
from pefttool.dropout import keep

#: transformers knows our attention by this name (`config._attn_implementation`).
NAME = "pefttool"
#: Options of some models that change what attention computes, and that are not built here: named when refused.
UNKNOWN = ("softcap", "s_aux", "position_bias")
#: Rows up to this long have their probabilities made whole on a CPU: [heads, T, T] in float32.
WHOLE = 1024
#: Probabilities of padded rows that are made at a time: 16 MiB.
BLOCK = 1 << 22

#: Rows of the batch, and tokens of those rows.
Block = tuple[slice, slice]
Blocks = tuple[Block, ...]


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
    """query [B, H, T, D], key and value [B, H_kv, S, D] -> ([B, T, H, D], None).

    `segments` are the lengths of rows that lie one behind another (B is 1, S is T); without them, `attention_mask`
    [B, 1, T, S] hides padding. Raises ValueError for an option that packed rows cannot have.
    """
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    unknown = [name for name in UNKNOWN if options.get(name) is not None]
    if segments is None:
        if unknown or not _whole_is_faster(query, key, attention_mask, causal, module.training):
            from transformers.integrations.sdpa_attention import sdpa_attention_forward

            more = {**options, "scaling": scaling, "is_causal": is_causal, "sliding_window": sliding_window}
            output: tuple[Tensor, None] = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, **more
            )
            return output
        hide = None if attention_mask is None else ~attention_mask
        blocks = _batch_blocks(query, key)
        return _whole(query, key, value, hide, blocks, scale, causal and hide is None, dropout), None
    if unknown:
        raise ValueError(f"packed rows cannot have attention with {unknown[0]!r}")
    if sliding_window is not None and (not causal or sliding_window >= max(segments)):
        sliding_window = None  # no row reaches beyond it
    if target.kind(query) == "cpu" and sliding_window is None and max(segments) <= WHOLE:
        blocks = tuple((slice(0, 1), rows) for rows in _ranges(segments))
        return _whole(query, key, value, None, blocks, scale, causal, dropout), None
    return _fused(query, key, value, segments, scale, causal, dropout, sliding_window).transpose(1, 2), None


def _whole_is_faster(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, training: bool = False) -> bool:
    """Padded rows on a CPU that need gradients, and whose mask is one that hides.

    Training without gradients is the first pass of a reentrant checkpoint: it has to do what the second will.
    """
    if mask is None:
        known = not causal or key.shape[2] == query.shape[2]
    else:
        known = mask.dtype == torch.bool
    needs = query.requires_grad or key.requires_grad if torch.is_grad_enabled() else training
    return known and needs and target.kind(query) == "cpu" and key.shape[2] <= WHOLE


def _ranges(segments: Sequence[int]) -> Iterator[slice]:
    start = 0
    for length in segments:
        yield slice(start, start + length)
        start += length


def _batch_blocks(query: Tensor, key: Tensor) -> Blocks:
    """As many rows of the batch at a time as keep the probabilities within `BLOCK`."""
    rows, heads, tokens, _ = query.shape
    size = max(1, BLOCK // (heads * tokens * key.shape[2]))
    return tuple((slice(start, start + size), slice(None)) for start in range(0, rows, size))


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


def _whole(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hide: Tensor | None,
    blocks: Blocks,
    scale: float,
    causal: bool,
    dropout: float,
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):  # inside a Function autocast would round some products and not others
        query, key, value = (t.to(torch.get_autocast_dtype("cpu")) for t in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        result: Tensor = _Whole.apply(query, key, value, hide, blocks, scale, causal, dropout)  # type: ignore[no-untyped-call]
    return result.transpose(1, 2)


class _Whole(torch.autograd.Function):
    """Block by block: P = softmax(scale Q K^T), O = P V; heads that share keys are products of one batch."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        hide: Tensor | None,
        blocks: Blocks,
        scale: float,
        causal: bool,
        dropout: float,
    ) -> Tensor:
        ctx.blocks, ctx.scale, ctx.causal = blocks, scale, causal
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        kept = []
        for block in blocks:
            q, k, v = (_by_key_head(t, block, key.shape[1]) for t in (query, key, value))
            p = _probabilities(q, k, hide, block, scale, causal).to(v.dtype)
            if dropout:
                kept.append(keep(p, dropout))
                p *= kept[-1]
            _put(output, block, p @ v)
        ctx.save_for_backward(query, key, value, hide, *kept)  # what is saved can be offloaded or made again
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, hide, *kept = ctx.saved_tensors
        heads = key.shape[1]
        made = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (query, key, value)]
        for block, keeps in zip(ctx.blocks, kept or [None] * len(ctx.blocks), strict=True):
            q, k, v, g = (_by_key_head(t, block, heads) for t in (query, key, value, gradients[0]))
            p = _probabilities(q, k, hide, block, ctx.scale, ctx.causal)
            d = g @ v.transpose(1, 2)
            dropped = p.to(g.dtype)
            if keeps is not None:
                d, dropped = d * keeps, dropped * keeps
            # dS = P * (dP - sum(dP * P)), which PyTorch has as one pass
            s = torch._softmax_backward_data(d.float(), p, -1, torch.float32).mul_(ctx.scale).to(q.dtype)
            _put(made[2], block, dropped.transpose(1, 2) @ g)
            _put(made[0], block, s @ k)
            _put(made[1], block, s.transpose(1, 2) @ q)
        return (*made, None, None, None, None, None)


def _by_key_head(tensor: Tensor, block: Block, heads: int) -> Tensor:
    """[B, H, T, D] -> [b * H_kv, (H / H_kv) * t, D] of one block, contiguous."""
    rows, tokens = block
    part = tensor[rows, :, tokens]
    return part.reshape(part.shape[0] * heads, -1, part.shape[-1])


def _put(target: Tensor, block: Block, part: Tensor) -> None:
    """The inverse of `_by_key_head`."""
    rows, tokens = block
    place = target[rows, :, tokens]
    place.copy_(part.view(place.shape))


def _probabilities(q: Tensor, k: Tensor, hide: Tensor | None, block: Block, scale: float, causal: bool) -> Tensor:
    """[b * H_kv, (H / H_kv) * t, s] in float32: softmax over the keys that each position may see."""
    scores = (q @ k.transpose(1, 2)).float().mul_(scale)
    if hide is not None:
        rows = hide[block[0]]
        # A position that sees nothing (padding) gets finite, unused probabilities instead of NaN.
        scores.view(rows.shape[0], -1, rows.shape[2], rows.shape[3]).masked_fill_(rows, torch.finfo(torch.float32).min)
    elif causal:
        length = scores.shape[-1]
        hidden = torch.ones(length, length, dtype=torch.bool, device=q.device).triu_(1)
        scores.view(-1, length, length).masked_fill_(hidden, float("-inf"))
    return scores.softmax(-1)
