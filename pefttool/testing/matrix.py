"""Adapters x tasks: what works, found out by doing it once on the tiny model of the task's kind.

A pair is planned as a user's recipe would be. If the plan refuses it, its reason has to name a way out; if not, one
real step of training has to change exactly what trains, and what is saved and loaded again has to answer the same, and
be worth the same: the metrics that a run states are those that `pefttool eval` finds.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pefttool.api.errors import NotMergeable, Refused, RunError
from pefttool.api.values import Row
from pefttool.config import recipe
from pefttool.config.registry import Registry
from pefttool.data.batches import by_length
from pefttool.data.encoding import Encoded, encode
from pefttool.export import delivered_metrics, reload
from pefttool.inference import packing, reference_model
from pefttool.inference.evaluate import evaluate
from pefttool.inference.predictor import Predictor
from pefttool.runs import artefacts
from pefttool.setup import attach, base, techniques
from pefttool.setup.plan import Plan, make
from pefttool.setup.precision import grad_scaler
from pefttool.testing.bench import require
from pefttool.testing.models import model_folder
from pefttool.testing.tasks import same_values
from pefttool.testing.tensors import changes, snapshot
from pefttool.toolkit import peft_folder
from pefttool.training.optimisation import Update, make_optimizer, optimizer_step
from pefttool.training.sanity_checks import UPDATES, Watch

#: A refusal says what to do instead in one of these words.
WAYS_OUT = ("use ", "drop ", "remove ", "add ")


@dataclass(frozen=True)
class Outcome:
    """What became of a pair on a tiny model of this kind and type: it works, or is refused with these reasons.

    `peft`: the saved adapter is in peft's layout.
    """

    task: str
    adapter: str
    kind: str
    model_type: str = ""
    refused: tuple[str, ...] = ()
    peft: bool = False

    @property
    def works(self) -> bool:
        return not self.refused


def try_pair(
    registry: Registry,
    task: str,
    adapter: str,
    rows: Sequence[Mapping[str, Any]],
    kind: str,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Outcome:
    """Plan, train, save, load and judge, switch off, merge; `changes` are keys of the recipe: train, dtype, quantize.

    In another dtype, or with a quantizer, what is rounded is not compared: only whether what was delivered is worth
    what was judged. Raises ContractViolation for what does not hold.
    """
    dtype, quantize = changes.get("dtype", "float32"), changes.get("quantize")
    exact = dtype == "float32" and quantize is None
    what = f"adapter {adapter!r} for task {task!r}" + ("" if exact else f" in {quantize or dtype}")
    given = {
        "model": str(model_folder(kind)),
        "task": task,
        "adapter": adapter,
        "device": "cpu",
        "dtype": dtype,
        "quantize": quantize,
        "train": {"sequence_length": 64, **changes.get("train", {})},
        "generation": {"max_new_tokens": 3, "do_sample": False},
    }
    try:
        planned = make(recipe.resolve(given, registry, data_optional=True), registry)
    except Refused as refused:
        for reason in refused.complaints:
            require(any(way in reason for way in WAYS_OUT), what, f"is refused without a way out: {reason}")
        return Outcome(task, adapter, kind, refused=tuple(refused.complaints))
    pair = _Pair.load(planned, [Row(values, "rows", i) for i, values in enumerate(rows, 1)], what)
    peft = pair.check() if exact else pair.judged_and_delivered()
    return Outcome(task, adapter, kind, planned.facts.model_type, peft=peft)


@dataclass(frozen=True)
class _Pair:
    plan: Plan
    base: base.Base
    adapted: attach.Adapted
    data: Encoded
    plain: list[dict[str, Any]]
    what: str

    @classmethod
    def load(cls, planned: Plan, rows: Sequence[Row], what: str) -> _Pair:
        task = planned.task
        planned = planned.settled(task.settle(rows, planned.recipe.task_options))
        options = planned.recipe.task_options
        loaded = base.load(planned, task.labels(rows, options), fitted=task.fit(rows, options))
        data = reference_model.settle(planned, loaded, encode(rows, task, loaded.processor, loaded.setting), None)
        plain = Predictor.of(planned, loaded).predict(data.rows)
        adapted = attach.attach(loaded.model, planned.adapter, planned.recipe.adapter_options, loaded.facts)
        techniques.apply(planned, adapted)
        loaded = packing.settle(planned, loaded, adapted.model, data, lambda notice: None)
        return cls(planned, loaded, adapted, data, plain, what)

    @property
    def max_grad_norm(self) -> float:
        return self.plan.recipe.train.max_grad_norm

    def require(self, holds: bool, message: str) -> None:
        require(holds, self.what, message)

    def check(self) -> bool:
        """Everything; whether the saved adapter is in peft's layout."""
        head = attach.head_values(self.adapted)
        self.one_step()
        peft = self.judged_and_delivered()
        self.switched_off(head)
        self.merged(self.answers(self.adapted.model))
        return peft

    def judged_and_delivered(self) -> bool:
        """A run in little: its best evaluation is not its last, and what that judged is what a fresh base gets back."""
        self.without_alarm()
        judged, best = self.metrics(), self.adapted.state()
        self.steps(2)
        self.adapted.put_back(best)
        return self.saved_and_loaded(self.answers(self.adapted.model), judged)

    def metrics(self) -> dict[str, float]:
        """As the loop finds them."""
        order = by_length([e["length"] for e in self.data.examples], self.plan.recipe.train.batch_size)
        return evaluate(Predictor.of(self.plan, self.base, self.adapted.model), self.data, order)[0]

    def answers(self, model: Any) -> list[dict[str, Any]]:
        return Predictor.of(self.plan, self.base, model).predict(self.data.rows)

    def one_step(self) -> None:
        """The core's own: every declared parameter gets a gradient and changes, and nothing else does."""
        parameters = self.adapted.parameters()
        self.require(bool(parameters), "nothing trains")
        optimizer = make_optimizer(self.adapted, self.plan.adapter, self.plan.recipe.train)
        reached: set[int] = set()
        for parameter in parameters.values():
            parameter.register_post_accumulate_grad_hook(lambda p: reached.add(id(p)))  # type: ignore[no-untyped-call]
        old = snapshot(self.adapted.model)
        batch = Predictor.of(self.plan, self.base).batch(self.data.examples)
        weight = float(sum(example["weight"] for example in self.data.examples))
        # Not in training mode: statistics of batches are no parameters, and would change too.
        update = Update(optimizer, grad_scaler(self.plan.choice), list(parameters.values()), self.max_grad_norm)
        predictor = Predictor.of(self.plan, self.base, self.adapted.model.eval())
        result = optimizer_step(predictor, update, [(batch, True)], weight)
        self.require(math.isfinite(result.loss) and result.grad_norm > 0, f"gives {result}")
        idle = [name for name, parameter in parameters.items() if id(parameter) not in reached]
        self.require(not idle, f"{idle[:1]} gets no gradient")
        drifted = [name for name in changes(old, snapshot(self.adapted.model)) if name not in parameters]
        self.require(not drifted, f"{drifted[:1]} does not train, and changed")

    def without_alarm(self) -> None:
        """Further steps as a run takes them: its watch has nothing to say."""
        told: list[str] = []
        try:
            self.steps(UPDATES, told)
        except RunError as error:
            told.append(str(error))
        self.require(not told, f"raises an alarm: {told[:1]}")

    def steps(self, count: int, told: list[str] | None = None) -> None:
        """Optimiser steps over all rows, in training mode; `told` is given what the watch over a run says of them."""
        model, settings = self.adapted.model, self.plan.recipe.train
        parameters = list(self.adapted.parameters().values())
        optimizer = make_optimizer(self.adapted, self.plan.adapter, settings)
        watch = None
        if told is not None:
            watch = Watch(self.adapted, optimizer, told.append, self.plan.adapter.trains_base)
        batch = Predictor.of(self.plan, self.base).batch(self.data.examples)
        weight = float(sum(example["weight"] for example in self.data.examples))
        model.train()
        for module in self.adapted.eval_modules:
            module.eval()
        for _ in range(count):
            update = Update(optimizer, grad_scaler(self.plan.choice), parameters, self.max_grad_norm)
            optimizer_step(Predictor.of(self.plan, self.base, model), update, [(batch, True)], weight)
        model.eval()
        if watch is not None:
            watch.finished()

    def saved_and_loaded(self, trained: Sequence[Mapping[str, Any]], judged: Mapping[str, float]) -> bool:
        """By the core's own ways, onto a base that is read from disk again, and judged as `pefttool eval` does."""
        with tempfile.TemporaryDirectory() as folder:
            saved = artefacts.save_adapter(Path(folder), self.plan, self.base, self.adapted)
            peft = (saved / peft_folder.CONFIG).is_file()
            again = reload.reload(
                Path(folder), self.plan.registry, "cpu", generation=dict(self.base.setting.generation)
            )
        found = self.answers(again.model)
        self.require(
            same_values(list(trained), found), f"answers {trained} before it is saved, and {found} when loaded"
        )
        worth, _ = delivered_metrics.measure(again, self.data.rows)
        apart = [name for name, value in judged.items() if not _same(value, worth[name])]
        self.require(
            not apart, f"is judged by {apart and judged[apart[0]]}, and worth {apart and worth[apart[0]]}: {apart[:1]}"
        )
        return peft

    def switched_off(self, head: Mapping[str, Any]) -> None:
        """The base answers, with the head as it was."""
        if not self.plan.adapter.switches_off:
            return
        with attach.without(self.adapted, self.plan.adapter, head):
            off = self.answers(self.adapted.model)
        self.require(same_values(self.plain, off), f"answers {off} when switched off, and the base {self.plain}")

    def merged(self, trained: Sequence[Mapping[str, Any]]) -> None:
        try:
            model = self.plan.adapter.merge(self.adapted.model)
        except NotMergeable:
            return
        found = self.answers(model)
        self.require(same_values(list(trained), found), f"answers {trained} beside the base, and {found} merged")


def _same(judged: float, found: float) -> bool:
    """To the bit: batches are the same, and so are sums."""
    return judged == found or (math.isnan(judged) and math.isnan(found))
