"""Whether rows may share a batch, packed or padded: the model is asked, with its own rows, before anything trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import UsageError
from pefttool.data.batches import FEATURES, Encoded, collate, loss_of, to_device, two_short
from pefttool.inference.evaluate import inference
from pefttool.setup.base import Base
from pefttool.setup.plan import Plan

if TYPE_CHECKING:
    from torch import nn

    from pefttool.api.values import Setting

#: The loss of two rows may differ by this from that of each alone, relatively, where products are rounded so.
ROUNDING = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


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
        reason = compare(plan, base, model, data.examples, packed)
    if reason is None:
        return replace(base, setting=packed), None
    if plan.recipe.train.packing:
        raise UsageError(f"train.packing: {reason}; drop it: batches are padded then")
    return replace(base, setting=replace(packed, packing=False)), f"batches are padded, not packed: {reason}"


def compare(
    plan: Plan, base: Base, model: nn.Module, examples: Sequence[Mapping[str, Any]], setting: Setting
) -> str | None:
    """How the loss of two rows in one batch, as `setting` makes it, differs from that of each row alone; or None.

    In evaluation mode. Padding, packing, and what else is in a batch must not change what is learnt of a row.
    """
    rows = [{name: example[name] for name in example if name != FEATURES} for example in two_short(examples)]
    alone = replace(setting, packing=False)

    def loss(part: Sequence[Mapping[str, Any]], of: Setting) -> tuple[float, float]:
        batch = to_device(collate(part, plan.task, base.processor, of), plan.choice.device)
        found = loss_of(plan.task, model, batch, of)
        return float(found.sum), float(found.weight)

    with inference(model, plan.choice):
        together, units = loss(rows, setting)
        apart = [loss([row], alone) for row in rows]
    total, weight = (sum(part) for part in zip(*apart, strict=True))
    how = "packed one behind another" if setting.packing else "padded to one length"
    if abs(units - weight) > 1e-4 * weight:
        return f"two rows {how} have {units:g} trained tokens or labels, and {weight:g} each alone"
    # A loss of next to nothing is the difference of numbers that are rounded.
    if not abs(together - total) <= ROUNDING[plan.choice.autocast or plan.choice.dtype] * max(
        abs(total), 0.01 * weight
    ):
        return f"two rows {how} have a loss of {together / units:.6g}, and of {total / weight:.6g} each alone"
    return None
