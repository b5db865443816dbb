"""Whether rows can be packed: the model is asked, with rows of its own data, before anything trains."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pefttool.base import Base
from pefttool.batches import Encoded
from pefttool.errors import UsageError
from pefttool.evaluate import inference
from pefttool.plan import Plan

if TYPE_CHECKING:
    from torch import nn


def settle(plan: Plan, base: Base, model: nn.Module, data: Encoded) -> tuple[Base, str | None]:
    """(base, notice): `setting.packing` is on only once `model` was found to keep rows apart.

    Raises UsageError where the recipe asks for packing and the model cannot.
    """
    if not plan.may_pack:
        return base, None
    packed = replace(base.setting, packing=True)
    shortest = sorted(data.examples, key=lambda example: int(example["length"]))
    with inference(model, plan.choice):
        reason = plan.task.check_packing(model, shortest, base.processor, packed)
    if reason is None:
        return replace(base, setting=packed), None
    if plan.recipe.train.packing:
        raise UsageError(f"train.packing: {reason}; drop it: batches are padded then")
    return replace(base, setting=replace(packed, packing=False)), f"batches are padded, not packed: {reason}"
