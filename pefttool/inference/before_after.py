"""What the base makes of the held-out rows, for comparison with what comes out of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pefttool.api.adapter import Adapter
from pefttool.api.events import Notice
from pefttool.config.emitter import Emitter
from pefttool.data.batches import FEATURES, Encoded, by_length
from pefttool.inference.evaluate import evaluate, predict
from pefttool.setup.attach import Adapted
from pefttool.setup.base import Base
from pefttool.setup.plan import Plan

if TYPE_CHECKING:
    from torch import nn

#: Held-out rows whose answers are shown before and after.
SAMPLES = 3

Moment = Literal["loaded", "attached", "trained"]


def moment(adapter: Adapter) -> Moment:
    """When the base is looked at: where that costs least.

    An adapter that can be switched off shows the base's answers after training, so that the first step need not wait.
    Where attaching adds nothing, the base still answers then, and there may be features by that time.
    """
    if adapter.switches_off:
        return "trained"
    return "attached" if adapter.frozen_backbone or adapter.trains_base else "loaded"


def later(moment: Moment, adapted: Adapted) -> Moment:
    """The same, now that it is known what trains: a new head alone can get its first values back after training."""
    return "trained" if moment == "attached" and not adapted.trainable else moment


def look(
    plan: Plan, base: Base, model: nn.Module, held_out: Encoded, emit: Emitter
) -> tuple[dict[str, float], list[Any]]:
    """Held-out metrics of `model`, and its answers to the first rows."""
    return measure(plan, base, model, held_out, emit), answers(plan, base, model, held_out)


def measure(plan: Plan, base: Base, model: nn.Module, held_out: Encoded, emit: Emitter) -> dict[str, float]:
    """Held-out metrics of `model`."""
    order = by_length([e["length"] for e in held_out.examples], plan.recipe.train.batch_size)
    alone = plan.facts.world_size == 1
    metrics, _ = evaluate(
        model,
        plan.task,
        held_out.examples,
        held_out.rows,
        order,
        base.processor,
        base.setting,
        plan.choice,
        (lambda text: emit(Notice(text=text, level="warning"))) if alone else None,
    )
    return metrics


def delivered(
    plan: Plan, base: Base, model: nn.Module, held_out: Encoded, judged: Mapping[str, float], emit: Emitter
) -> Mapping[str, float]:
    """Held-out metrics of the model that is delivered, as whoever loads it finds them.

    They are those that it was `judged` by, unless kept features stood in for a part of it: those were computed in other
    batches, which half precision rounds so differently that it shows.
    """
    if FEATURES not in held_out.examples[0] or (plan.choice.autocast or plan.choice.dtype) == "float32":
        return judged
    plain = tuple({name: e[name] for name in e if name != FEATURES} for e in held_out.examples)
    return measure(plan, base, model, replace(held_out, examples=plain), emit)


def answers(plan: Plan, base: Base, model: nn.Module, held_out: Encoded) -> list[Any]:
    """What `model` makes of the first held-out rows."""
    return predict(model, plan.task, held_out.rows[:SAMPLES], base.processor, base.setting, plan.choice)
