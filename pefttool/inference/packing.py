"""Whether rows may share a batch, packed or padded: the model is asked, with its own rows, before anything trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import UsageError
from pefttool.api.events import Notice
from pefttool.data.batches import two_short
from pefttool.data.encoding import Encoded
from pefttool.inference.predictor import Predictor, without_features
from pefttool.setup.base import Base
from pefttool.setup.plan import Plan

if TYPE_CHECKING:
    from torch import nn


#: The loss of two rows may differ by this from that of each alone, relatively, where products are rounded so.
ROUNDING = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def settle(plan: Plan, base: Base, model: nn.Module, data: Encoded, emit: Callable[[Notice], object]) -> Base:
    """The base with `setting.packing` on only once `model` was found to keep rows apart; a notice says why it is not.

    Raises UsageError where the recipe asks for packing and the model cannot.
    """
    if not plan.may_pack:
        return base
    packed = replace(base.setting, packing=True)
    shortest = sorted(data.examples, key=lambda example: int(example["length"]))
    predictor = replace(Predictor.of(plan, base, model), setting=packed)
    with predictor.inference():
        reason = plan.task.check_packing(model, shortest, base.processor, packed)
    if reason is None:
        reason = compare(predictor, data.examples)
    if reason is None:
        return replace(base, setting=packed)
    if plan.recipe.train.packing:
        raise UsageError(f"train.packing: {reason}; drop it: batches are padded then")
    emit(Notice(text=f"batches are padded, not packed: {reason}"))
    return replace(base, setting=replace(packed, packing=False))


def compare(predictor: Predictor, examples: Sequence[Mapping[str, Any]]) -> str | None:
    """How the loss of two rows in one batch, as the setting makes it, differs from that of each row alone; or None.

    In evaluation mode. Padding, packing, and the other rows of a batch must not change what is learnt of a row.
    """
    rows = [without_features(example) for example in two_short(examples)]
    alone = replace(predictor, setting=replace(predictor.setting, packing=False))

    def loss(of: Predictor, part: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
        found = of.loss(of.batch(part))
        return float(found.sum), float(found.weight)

    with predictor.inference():
        together, units = loss(predictor, rows)
        apart = [loss(alone, [row]) for row in rows]
    total, weight = (sum(part) for part in zip(*apart, strict=True))
    how = "packed one behind another" if predictor.setting.packing else "padded to one length"
    if abs(units - weight) > 1e-4 * weight:
        return f"two rows {how} have {units:g} trained tokens or labels, and {weight:g} each alone"
    allowed = ROUNDING[predictor.choice.autocast or predictor.choice.dtype]
    # A loss of next to nothing is the difference of numbers that are rounded.
    if not abs(together - total) <= allowed * max(abs(total), 0.01 * weight):
        return f"two rows {how} have a loss of {together / units:.6g}, and of {total / weight:.6g} each alone"
    return None
