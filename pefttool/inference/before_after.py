"""What the base makes of the held-out rows, for comparison with what comes out of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pefttool.api.adapter import Adapter
from pefttool.api.events import Notice
from pefttool.config.emitter import Emitter
from pefttool.data.batches import by_length
from pefttool.data.encoding import Encoded, Examples
from pefttool.inference import packing
from pefttool.inference.evaluate import evaluate
from pefttool.inference.predictor import FEATURES, Predictor, without_features
from pefttool.setup import attach
from pefttool.setup.attach import Adapted
from pefttool.setup.base import Base
from pefttool.setup.plan import Plan
from pefttool.setup.prepared import Prepared

if TYPE_CHECKING:
    from torch import Tensor

#: Held-out rows whose answers are shown before and after.
SAMPLES = 3

Moment = Literal["loaded", "attached", "trained"]


@dataclass(frozen=True)
class Seen:
    """What a model makes of the held-out rows: the metrics of all, and the answers to the first."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    answers: list[Any] = field(default_factory=list)


def moment(adapter: Adapter) -> Moment:
    """When the base is looked at: where that costs least.

    An adapter that can be switched off shows the base's answers after training, so that the first step need not wait.
    Where attaching adds nothing, the base still answers then, and there may be features by that time.
    """
    if adapter.switches_off:
        return "trained"
    return "attached" if adapter.frozen_backbone or adapter.trains_base else "loaded"


class Comparison:
    """The base beside the trained model, on the held-out rows.

    The stages of a run tell the comparison how far they are (`once_...`), and it looks at the base in one of them.
    Packing is tried at the same moments, since the models that answer then are those that must keep rows apart.
    """

    def __init__(self, plan: Plan, emit: Emitter) -> None:
        self.plan, self.emit = plan, emit
        self.moment = moment(plan.adapter)
        self.seen: Seen | None = None
        self.untrained: Mapping[str, Tensor] = {}

    def once_loaded(self, base: Base, data: Examples) -> Base:
        """The base, with packing on or off."""
        if self.moment != "loaded":
            return base
        base = packing.settle(self.plan, base, base.model, data.train, self.emit)
        self.seen = self._look(Predictor.of(self.plan, base), data.held_out)
        return base

    def once_attached(self, base: Base, adapted: Adapted, data: Examples) -> Base:
        """The base, with packing on or off: asked of the adapted model, since the adapter may mix rows."""
        if self.moment == "attached" and not adapted.trainable:
            self.moment = "trained"  # a new head alone can get its first values back after training
        if self.moment == "loaded" and not base.setting.packing:
            return base
        return packing.settle(self.plan, base, adapted.model, data.train, self.emit)

    def once_prepared(self, prepared: Prepared) -> None:
        """Everything is as it will be trained, and nothing has been."""
        if self.moment == "attached":
            self.seen = self._look(self._predictor(prepared), prepared.data.held_out)
        self.untrained = attach.head_values(prepared.adapted)

    def before(self, prepared: Prepared) -> Seen:
        """What the base makes of the rows. After training it is asked with the adapter switched off, and the first
        values in the task head."""
        if self.seen is None:
            with attach.without(prepared.adapted, self.plan.adapter, self.untrained):
                self.seen = self._look(self._predictor(prepared), prepared.data.held_out)
        return self.seen

    def answers(self, prepared: Prepared) -> list[Any]:
        """What the trained model makes of the first held-out rows."""
        return _answers(self._predictor(prepared), prepared.data.held_out)

    def delivered(self, prepared: Prepared, judged: Mapping[str, float]) -> Mapping[str, float]:
        """Held-out metrics of the model that is delivered, as a user who loads it finds them.

        They are those that the model was `judged` by, unless kept features stood in for a part of it: features are
        computed in other batches, which half precision rounds so differently that it shows.
        """
        held_out, choice = prepared.data.held_out, self.plan.choice
        if FEATURES not in held_out.examples[0] or (choice.autocast or choice.dtype) == "float32":
            return judged
        plain = replace(held_out, examples=tuple(map(without_features, held_out.examples)))
        return self._measure(self._predictor(prepared), plain)

    def _predictor(self, prepared: Prepared) -> Predictor:
        return Predictor.of(self.plan, prepared.base, prepared.adapted.model)

    def _look(self, predictor: Predictor, held_out: Encoded) -> Seen:
        return Seen(self._measure(predictor, held_out), _answers(predictor, held_out))

    def _measure(self, predictor: Predictor, held_out: Encoded) -> dict[str, float]:
        order = by_length([e["length"] for e in held_out.examples], self.plan.recipe.train.batch_size)
        alone = self.plan.facts.world_size == 1
        return evaluate(predictor, held_out, order, self._warn if alone else None)[0]

    def _warn(self, text: str) -> None:
        self.emit(Notice(text=text, level="warning"))


def _answers(predictor: Predictor, held_out: Encoded) -> list[Any]:
    return predictor.predict(held_out.rows[:SAMPLES])
