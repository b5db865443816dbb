"""Adapters x tasks: what works, found out by doing it once on the tiny model of the task's kind.

A pair is planned as a user's recipe would be. If the plan refuses it, its reason has to name a way out; if not, one
real step of training has to change exactly what trains, and what is saved and loaded again has to answer the same.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pefttool import artefacts, attach, base, packing, peft_folder, recipe, reference, reload, techniques
from pefttool.batches import Encoded, encode
from pefttool.errors import NotMergeable, Refused, RunError
from pefttool.evaluate import predict
from pefttool.optimisation import make_optimizer, optimizer_step
from pefttool.plan import Plan, make
from pefttool.precision import grad_scaler
from pefttool.registry import Registry
from pefttool.testing.bench import require
from pefttool.testing.models import model_folder
from pefttool.testing.tasks import same_values
from pefttool.testing.tensors import changes, snapshot
from pefttool.values import Row
from pefttool.watch import UPDATES, Watch

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
    train: Mapping[str, Any] | None = None,
) -> Outcome:
    """Plan, train one step, save, load, switch off, merge; with these `train.*` settings.

    Raises ContractViolation for what does not hold.
    """
    what = f"adapter {adapter!r} for task {task!r}"
    given = {
        "model": str(model_folder(kind)),
        "task": task,
        "adapter": adapter,
        "device": "cpu",
        "dtype": "float32",
        "train": {"sequence_length": 64, **(train or {})},
        "generation": {"max_new_tokens": 3, "do_sample": False},
    }
    try:
        planned = make(recipe.resolve(given, registry, data_optional=True), registry)
    except Refused as refused:
        for reason in refused.complaints:
            require(any(way in reason for way in WAYS_OUT), what, f"is refused without a way out: {reason}")
        return Outcome(task, adapter, kind, refused=tuple(refused.complaints))
    pair = _Pair.load(planned, [Row(values, "rows", i) for i, values in enumerate(rows, 1)], what)
    return Outcome(task, adapter, kind, planned.facts.model_type, peft=pair.check())


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
        data = reference.settle(planned, loaded, encode(rows, task, loaded.processor, loaded.setting), None)
        plain = predict(loaded.model, task, data.rows, loaded.processor, loaded.setting, planned.choice)
        adapted = attach.attach(loaded.model, planned.adapter, planned.recipe.adapter_options, loaded.facts)
        techniques.apply(planned, adapted)
        loaded, _ = packing.settle(planned, loaded, adapted.model, data)
        return cls(planned, loaded, adapted, data, plain, what)

    def require(self, holds: bool, message: str) -> None:
        require(holds, self.what, message)

    def check(self) -> bool:
        """Everything; whether the saved adapter is in peft's layout."""
        head = attach.head_values(self.adapted)
        self.one_step()
        self.without_alarm()
        trained = self.answers(self.adapted.model)
        peft = self.saved_and_loaded(trained)
        self.switched_off(head)
        self.merged(trained)
        return peft

    def answers(self, model: Any) -> list[dict[str, Any]]:
        base = self.base
        return predict(model, self.plan.task, self.data.rows, base.processor, base.setting, self.plan.choice)

    def one_step(self) -> None:
        """The core's own: every declared parameter gets a gradient and changes, and nothing else does."""
        parameters, task, setting = self.adapted.parameters(), self.plan.task, self.base.setting
        self.require(bool(parameters), "nothing trains")
        optimizer = make_optimizer(self.adapted, self.plan.adapter, self.plan.recipe.train)
        reached: set[int] = set()
        for parameter in parameters.values():
            parameter.register_post_accumulate_grad_hook(lambda p: reached.add(id(p)))  # type: ignore[no-untyped-call]
        old = snapshot(self.adapted.model)
        batch = task.collate(self.data.examples, self.base.processor, setting)
        weight = float(sum(example["weight"] for example in self.data.examples))
        # Not in training mode: statistics of batches are no parameters, and would change too.
        result = optimizer_step(
            self.adapted.model.eval(),
            list(parameters.values()),
            [(batch, True)],
            weight,
            task,
            setting,
            self.plan.choice,
            optimizer,
            grad_scaler(self.plan.choice),
            self.plan.recipe.train.max_grad_norm,
        )
        self.require(math.isfinite(result.loss) and result.grad_norm > 0, f"gives {result}")
        idle = [name for name, parameter in parameters.items() if id(parameter) not in reached]
        self.require(not idle, f"{idle[:1]} gets no gradient")
        drifted = [name for name in changes(old, snapshot(self.adapted.model)) if name not in parameters]
        self.require(not drifted, f"{drifted[:1]} does not train, and changed")

    def without_alarm(self) -> None:
        """Further steps as a run takes them: its watch has nothing to say. Then everything is as it was before."""
        model, parameters, settings = self.adapted.model, self.adapted.parameters(), self.plan.recipe.train
        values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        optimizer = make_optimizer(self.adapted, self.plan.adapter, settings)
        told: list[str] = []
        watch = Watch(self.adapted, optimizer, told.append, self.plan.adapter.trains_base)
        batch = self.plan.task.collate(self.data.examples, self.base.processor, self.base.setting)
        weight = float(sum(example["weight"] for example in self.data.examples))
        model.train()
        for module in self.adapted.still:
            module.eval()
        try:
            for _ in range(UPDATES):
                optimizer_step(
                    model,
                    list(parameters.values()),
                    [(batch, True)],
                    weight,
                    self.plan.task,
                    self.base.setting,
                    self.plan.choice,
                    optimizer,
                    grad_scaler(self.plan.choice),
                    settings.max_grad_norm,
                )
            watch.finished()
        except RunError as error:
            told.append(str(error))
        self.require(not told, f"raises an alarm: {told[:1]}")
        model.eval()
        import torch

        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(values[name])

    def saved_and_loaded(self, trained: Sequence[Mapping[str, Any]]) -> bool:
        """By the core's own ways, onto a base that is read from disk again."""
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
