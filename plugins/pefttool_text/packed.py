"""Rows of tokens one behind another in one sequence, instead of padded: the batch, the call, and the proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

LENGTHS = "lengths"
#: Of each of the two rows that a model is tried with.
TRIED_TOKENS = 48
#: A row's logits among others may differ from those alone by this, relative, where products are rounded.
ROUNDING = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`input_ids`, `labels`, `position_ids` `[1, T]` of all rows, int64, and `lengths`, one int a row.

    A row's first token is never predicted (its label is IGNORE), so no row is asked for the next one's beginning.
    """
    import torch

    lengths = [len(e["input_ids"]) for e in examples]

    def chain(name: str) -> Tensor:
        return torch.tensor([value for e in examples for value in e[name]]).unsqueeze(0)

    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    return {
        "input_ids": chain("input_ids"),
        "labels": chain("labels"),
        "position_ids": positions,
        LENGTHS: tuple(lengths),
    }


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a model is called with, packed or padded."""
    if LENGTHS not in batch:
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    from pefttool.nn.attention import packed_mask

    ids = batch["input_ids"]
    return {
        "input_ids": ids,
        "position_ids": batch["position_ids"],
        "attention_mask": packed_mask(ids.device),
        "segments": batch[LENGTHS],
    }


def check(model: nn.Module, examples: Sequence[Mapping[str, Any]]) -> str | None:
    """Why `model` cannot keep packed rows apart, or None: a row's logits may not depend on its neighbour at all,
    nor on its place among the rows but by rounding.
    """
    from pefttool.nn.attention import install

    reason = install(model)
    if reason is not None:
        return reason
    rows = [list(e["input_ids"][:TRIED_TOKENS]) for e in examples[:2] if len(e["input_ids"]) > 1]
    rows *= 2
    if len(rows) < 2:
        return "no row is longer than one token"
    first, second = rows[:2]
    other = [first[-1]] * len(first) if len(set(first)) > 1 else [(first[0] + 1) % 2] * len(first)
    try:
        behind = _logits(model, [first, second])[:, -len(second) :]
        behind_other = _logits(model, [other, second])[:, -len(second) :]
        before = _logits(model, [second, first])[:, : len(second)]
        before_other = _logits(model, [second, other])[:, : len(second)]
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        return f"{type(model).__name__} cannot be called with packed rows ({' '.join(str(error).split())[:150]})"
    if not behind.equal(behind_other) or not before.equal(before_other):
        return f"a row's logits depend on its neighbour in {type(model).__name__}"
    # Of the same number of tokens: how many there are may choose another product, and a large rounding error with it.
    limit = ROUNDING.get(str(before.dtype).removeprefix("torch."), ROUNDING["bfloat16"])
    behind, before = behind.cpu().double(), before.cpu().double()  # Apple's GPUs have no float64
    error = float((behind - before).norm() / before.norm())
    if not error <= limit:
        return f"a row's logits depend on its place: by {error:.1e} in {type(model).__name__}"
    return None


def _logits(model: nn.Module, rows: Sequence[Sequence[int]]) -> Tensor:
    from pefttool.nn import embedding_offload

    device = embedding_offload.device_of(model)
    batch = collate([{"input_ids": row, "labels": row} for row in rows])
    logits: Tensor = model(
        **model_inputs({k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}), use_cache=False
    ).logits
    return logits.detach()
