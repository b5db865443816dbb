"""A model with everything that it takes to ask it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttool.api.task import Task
from pefttool.api.values import Loss, Row, Setting
from pefttool.setup.precision import autocast
from pefttool.toolkit.random_numbers import forked

if TYPE_CHECKING:
    from torch import nn

    from pefttool.setup.base import Base
    from pefttool.setup.devices import Choice
    from pefttool.setup.plan import Plan

#: What an example, or a batch, carries under this name: the outputs of the frozen part of the model, computed before.
FEATURES = "frozen features"


@dataclass(frozen=True)
class Predictor:
    """A model and what it is asked with: in training, in evaluation, and once it is loaded again.

    `setting` says how rows are encoded and batched, `choice` on which device and in which precision the model computes.
    """

    model: nn.Module
    task: Task
    processor: Any
    setting: Setting
    choice: Choice

    @classmethod
    def of(cls, plan: Plan, base: Base, model: nn.Module | None = None) -> Predictor:
        """The planned task with `model`, which is the base by itself unless another is given."""
        return cls(base.model if model is None else model, plan.task, base.processor, base.setting, plan.choice)

    def batch(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch on the device, with the features of the rows where they have some."""
        batch: dict[str, Any] = self.task.collate(examples, self.processor, self.setting)
        if FEATURES in examples[0]:
            features = examples[0][FEATURES].kept.batch([e[FEATURES].row for e in examples], batch)
            if features is not None:
                batch[FEATURES] = features
        return {name: value.to(self.choice.device) if hasattr(value, "to") else value for name, value in batch.items()}

    def loss(self, batch: Mapping[str, Any]) -> Loss:
        """The task's loss. Where the batch carries features, everything below them does not run."""
        if FEATURES not in batch:
            return self.task.loss(self.model, batch, self.setting)
        with batch[FEATURES].standing_in():
            return self.task.loss(self.model, without_features(batch), self.setting)

    def inference(self) -> AbstractContextManager[None]:
        """Within, the model is in evaluation mode: see `inference`."""
        return inference(self.model, self.choice)

    def predict(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """The task's answers to these rows (one batch).

        Where the task draws at random, the run's seed decides, so that training, `eval` and `predict` draw the same.
        """
        import torch

        with self.inference():
            torch.manual_seed(self.setting.seed)
            return self.task.predict(self.model, rows, self.processor, self.setting)


def without_features(named: Mapping[str, Any]) -> dict[str, Any]:
    """An example or a batch as the task made it."""
    return {name: value for name, value in named.items() if name != FEATURES}


@contextmanager
def inference(model: nn.Module, choice: Choice) -> Iterator[None]:
    """Eval mode, no gradients, the run's precision; module modes and random state are as before afterwards."""
    import torch

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with forked(choice.device), torch.no_grad(), autocast(choice):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
