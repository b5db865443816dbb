"""Attention on a CPU, block by block: whole probabilities of a few rows, faster there than the fused kernel."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pefttool.nn.dropout import keep

#: Probabilities of padded rows that are made at a time: 16 MiB.
BLOCK = 1 << 22
#: Rows of the batch, tokens of those rows that ask, and tokens that they see.
Block = tuple[slice, slice, slice]
Blocks = tuple[Block, ...]
#: Rows of the batch, and tokens of those rows.
Where = tuple[slice, slice]


def batch_blocks(query: Tensor, key: Tensor) -> Blocks:
    """As many rows of the batch at a time as keep the probabilities within `BLOCK`."""
    rows, heads, tokens, _ = query.shape
    size = max(1, BLOCK // (heads * tokens * key.shape[2]))
    return tuple((slice(start, start + size), slice(0, tokens), slice(None)) for start in range(0, rows, size))


class Softmax(NamedTuple):
    """How scores become probabilities: what they are multiplied by, whether a position sees only what is before it, and
    the share that dropout takes."""

    scale: float
    causal: bool
    dropout: float


def whole(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, blocks: Blocks, how: Softmax) -> Tensor:
    """query [B, H, T, D], key and value [B, H_kv, S, D], mask [B, 1, T, S] or None -> [B, T, H, D]."""
    if torch.is_autocast_enabled("cpu"):  # inside a Function autocast would round some products and not others
        query, key, value = (t.to(torch.get_autocast_dtype("cpu")) for t in (query, key, value))
    how = how._replace(causal=how.causal and mask is None)
    with torch.autocast("cpu", enabled=False):
        result: Tensor = _Whole.apply(query, key, value, mask, blocks, how)  # type: ignore[no-untyped-call]
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
        how: Softmax,
    ) -> Tensor:
        ctx.blocks, ctx.how = blocks, how
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        kept = []
        for block in blocks:
            q = _by_key_head(query, block[:2], key.shape[1])
            k, v = (_by_key_head(t, block[::2], key.shape[1]) for t in (key, value))
            p = _probabilities(q, k, mask, block, how).to(v.dtype)
            if how.dropout:
                kept.append(keep(p, how.dropout))
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
        wide = torch.float32 if ctx.how.causal else None
        dk, dv = (t.new_zeros(t.shape, dtype=wide) for t in (key, value))
        for block, keeps in zip(ctx.blocks, kept or [None] * len(ctx.blocks), strict=True):
            asking, seen = block[:2], block[::2]
            q, g = (_by_key_head(t, asking, heads) for t in (query, gradients[0]))
            k, v = (_by_key_head(t, seen, heads) for t in (key, value))
            p = _probabilities(q, k, mask, block, ctx.how)
            d = g @ v.transpose(1, 2)
            dropped = p.to(g.dtype)
            if keeps is not None:
                d, dropped = d * keeps, dropped * keeps
            # dS = P * (dP - sum(dP * P)), which PyTorch has as one pass
            s = torch._softmax_backward_data(d.float(), p, -1, torch.float32).mul_(ctx.how.scale).to(q.dtype)
            _place(dv, seen).add_(_unfold(dropped.transpose(1, 2) @ g, dv, seen))
            _place(dq, asking).copy_(_unfold(s @ k, dq, asking))
            _place(dk, seen).add_(_unfold(s.transpose(1, 2) @ q, dk, seen))
        return dq, dk.to(key.dtype), dv.to(value.dtype), None, None, None


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


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, block: Block, how: Softmax) -> Tensor:
    """[b * H_kv, (H / H_kv) * t, s] in float32: softmax over the keys that each position may see."""
    scores = (q @ k.transpose(1, 2)).float().mul_(how.scale)
    if mask is not None:
        rows = mask[block[0]]
        # A position that sees nothing (padding) gets finite, unused probabilities instead of NaN.
        hidden = torch.where(rows, 0.0, torch.finfo(torch.float32).min)
        scores.view(rows.shape[0], -1, rows.shape[2], rows.shape[3]).add_(hidden)
    elif how.causal:
        # The keys end where the queries end: only their last square has something to hide. A sum is several times
        # faster than filling by a mask.
        seen = scores.shape[-1]
        tokens = block[1].stop - block[1].start
        hidden = torch.full((tokens, tokens), float("-inf"), device=q.device).triu_(1)
        scores.view(-1, tokens, seen)[:, :, seen - tokens :].add_(hidden)
    return scores.softmax(-1)
