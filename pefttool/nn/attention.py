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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from pefttool.nn import attention_modules, attention_prefix, placement
from pefttool.nn.dropout import keep

#: transformers knows our attention by this name (`config._attn_implementation`).
NAME = "pefttool"
#: Options of some models that change what attention computes, and that are not built here: named when refused.
UNKNOWN = ("softcap", "s_aux", "position_bias")
#: Rows up to this long have their probabilities made whole on a CPU: [heads, T, T] in float32.
WHOLE = 1024
#: Probabilities of padded rows that are made at a time: 16 MiB.
BLOCK = 1 << 22

#: Queries of a packed row that are taken at a time: of the keys behind the last of them nothing is computed.
TILE = 128

#: Rows of the batch, tokens of those rows that ask, and tokens that they see.
Block = tuple[slice, slice, slice]
Blocks = tuple[Block, ...]
#: Rows of the batch, and tokens of those rows.
Where = tuple[slice, slice]


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
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    unknown = [name for name in UNKNOWN if options.get(name) is not None]
    prefix = attention_prefix.of(module, key)
    before = 0 if prefix is None else prefix[0].shape[1]
    if segments is None:
        if prefix is not None:
            key, value, attention_mask, bias = attention_prefix.padded(
                prefix, query.shape[2], key, value, attention_mask, causal, options.get("position_bias")
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
        blocks = _batch_blocks(query, key)
        return _whole(query, key, value, attention_mask, blocks, scale, causal, dropout), None
    if unknown:
        raise ValueError(f"packed rows cannot have attention with {unknown[0]!r}")
    if sliding_window is not None and (not causal or sliding_window >= max(segments)):
        sliding_window = None  # no row reaches beyond it
    if prefix is not None:
        key, value = attention_prefix.packed(prefix, key, value, segments)
    if placement.kind(query) == "cpu" and sliding_window is None and max(segments) <= WHOLE:
        blocks = tuple(_row_blocks(segments, causal, before))
        return _whole(query, key, value, None, blocks, scale, causal, dropout), None
    return _fused(query, key, value, segments, scale, causal, dropout, sliding_window, before).transpose(1, 2), None


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


def _batch_blocks(query: Tensor, key: Tensor) -> Blocks:
    """As many rows of the batch at a time as keep the probabilities within `BLOCK`."""
    rows, heads, tokens, _ = query.shape
    size = max(1, BLOCK // (heads * tokens * key.shape[2]))
    return tuple((slice(start, start + size), slice(0, tokens), slice(None)) for start in range(0, rows, size))


def _row_blocks(segments: Sequence[int], causal: bool, before: int = 0) -> Iterator[Block]:
    """Of every packed row the tokens, `TILE` at a time where each sees only what is before it.

    Among the keys, every row begins with `before` others.
    """
    for index, row in enumerate(_ranges(segments)):
        step = TILE if causal else row.stop - row.start
        for start in range(row.start, row.stop, step):
            stop = min(start + step, row.stop)
            yield slice(0, 1), slice(start, stop), slice(row.start + index * before, stop + (index + 1) * before)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Sequence[int],
    scale: float,
    causal: bool,
    dropout: float,
    window: int | None,
    before: int = 0,
) -> Tensor:
    # Split, not sliced: of every slice the backward pass would fill a gradient as long as all rows together.
    queries = query.split_with_sizes(list(segments), dim=2)
    keys, values = (t.split_with_sizes([length + before for length in segments], dim=2) for t in (key, value))
    parts = []
    for length, q, k, v in zip(segments, queries, keys, values, strict=True):
        mask = None
        if window is not None and length > window:
            at = torch.arange(length, device=query.device)
            back = at[:, None] - at[None, :]
            mask = pad((back >= 0) & (back < window), (before, 0), value=True)
        elif causal and before:
            mask = attention_prefix.lower_right(length, length + before, query.device)
        parts.append(
            scaled_dot_product_attention(
                q,
                k,
                v,
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
    mask: Tensor | None,
    blocks: Blocks,
    scale: float,
    causal: bool,
    dropout: float,
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):  # inside a Function autocast would round some products and not others
        query, key, value = (t.to(torch.get_autocast_dtype("cpu")) for t in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        result: Tensor = _Whole.apply(query, key, value, mask, blocks, scale, causal and mask is None, dropout)  # type: ignore[no-untyped-call]
    return result.transpose(1, 2)


class _Whole(torch.autograd.Function):
    """Block by block: P = softmax(scale Q K^T), O = P V; heads that share keys are products of one batch."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        blocks: Blocks,
        scale: float,
        causal: bool,
        dropout: float,
    ) -> Tensor:
        ctx.blocks, ctx.scale, ctx.causal = blocks, scale, causal
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        kept = []
        for block in blocks:
            q = _by_key_head(query, block[:2], key.shape[1])
            k, v = (_by_key_head(t, block[::2], key.shape[1]) for t in (key, value))
            p = _probabilities(q, k, mask, block, scale, causal).to(v.dtype)
            if dropout:
                kept.append(keep(p, dropout))
                p *= kept[-1]
            _place(output, block[:2]).copy_(_unfold(p @ v, output, block[:2]))
        ctx.save_for_backward(query, key, value, mask, *kept)  # what is saved can be offloaded or made again
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, *kept = ctx.saved_tensors
        heads = key.shape[1]
        dq = torch.empty_like(query, memory_format=torch.contiguous_format)
        # Tiles of a row add to the same keys: their sum is rounded once.
        wide = torch.float32 if ctx.causal else None
        dk, dv = (t.new_zeros(t.shape, dtype=wide) for t in (key, value))
        for block, keeps in zip(ctx.blocks, kept or [None] * len(ctx.blocks), strict=True):
            asking, seen = block[:2], block[::2]
            q, g = (_by_key_head(t, asking, heads) for t in (query, gradients[0]))
            k, v = (_by_key_head(t, seen, heads) for t in (key, value))
            p = _probabilities(q, k, mask, block, ctx.scale, ctx.causal)
            d = g @ v.transpose(1, 2)
            dropped = p.to(g.dtype)
            if keeps is not None:
                d, dropped = d * keeps, dropped * keeps
            # dS = P * (dP - sum(dP * P)), which PyTorch has as one pass
            s = torch._softmax_backward_data(d.float(), p, -1, torch.float32).mul_(ctx.scale).to(q.dtype)
            _place(dv, seen).add_(_unfold(dropped.transpose(1, 2) @ g, dv, seen))
            _place(dq, asking).copy_(_unfold(s @ k, dq, asking))
            _place(dk, seen).add_(_unfold(s.transpose(1, 2) @ q, dk, seen))
        return dq, dk.to(key.dtype), dv.to(value.dtype), None, None, None, None, None, None


def _place(tensor: Tensor, where: Where) -> Tensor:
    rows, tokens = where
    return tensor[rows, :, tokens]


def _by_key_head(tensor: Tensor, where: Where, heads: int) -> Tensor:
    """[B, H, T, D] -> [b * H_kv, (H / H_kv) * t, D] of those rows and tokens, contiguous."""
    part = _place(tensor, where)
    return part.reshape(part.shape[0] * heads, -1, part.shape[-1])


def _unfold(part: Tensor, like: Tensor, where: Where) -> Tensor:
    """The inverse of `_by_key_head`: `part` in the shape of its place in `like`."""
    return part.view(_place(like, where).shape)


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, block: Block, scale: float, causal: bool) -> Tensor:
    """[b * H_kv, (H / H_kv) * t, s] in float32: softmax over the keys that each position may see."""
    scores = (q @ k.transpose(1, 2)).float().mul_(scale)
    if mask is not None:
        rows = mask[block[0]]
        # A position that sees nothing (padding) gets finite, unused probabilities instead of NaN.
        hidden = torch.where(rows, 0.0, torch.finfo(torch.float32).min)
        scores.view(rows.shape[0], -1, rows.shape[2], rows.shape[3]).add_(hidden)
    elif causal:
        # The keys end where the queries end: only their last square has something to hide. A sum is several times
        # faster than filling by a mask.
        seen = scores.shape[-1]
        tokens = block[1].stop - block[1].start
        hidden = torch.full((tokens, tokens), float("-inf"), device=q.device).triu_(1)
        scores.view(-1, tokens, seen)[:, :, seen - tokens :].add_(hidden)
    return scores.softmax(-1)
