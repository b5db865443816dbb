"""Stage 7: the loop, on accelerate. One optimiser step after another; emits events; keeps the best evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import RunError
from pefttool.api.events import Evaluated, Notice, StepDone, TrainFinished, TrainStarted
from pefttool.data.batches import Position, by_length
from pefttool.inference import verdict
from pefttool.inference.evaluate import evaluate
from pefttool.runs.progress import Best, TrainingProgress
from pefttool.setup.device_memory import memory_in_use
from pefttool.setup.prepared import Prepared, Session
from pefttool.training import interrupts
from pefttool.training.checkpointing import Keeper
from pefttool.training.optimisation import (
    advance,
)
from pefttool.training.rehearsal import rehearse
from pefttool.training.state import Rehearsed, TrainingState

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Result:
    """`best_step` is the step whose adapter is delivered; the model is as it was then, and `metrics` are its own.

    `keep`, for when what comes next fails, writes a checkpoint to finish the run from; whether there is one.
    """

    steps: int
    best_step: int
    metrics: Mapping[str, float]
    reason: str
    rehearsed: Rehearsed | None = None
    keep: Callable[[], bool] = lambda: True


def train(
    prepared: Prepared,
    session: Session,
    identity: Callable[[], Mapping[str, Any]] = dict,
    resume: Path | None = None,
) -> Result:
    """Train until the last step, until patience runs out, or until an observer asks to stop.

    `identity` says what checkpoints store of that (resuming.py); `resume` is the one to go on from. Raises Interrupted
    after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    loop = Loop(prepared, session, identity, resume)
    with interrupts.waiting() as loop.heard:
        result = loop.run()
    if loop.heard.number is not None:  # after the last step
        raise interrupts.Raised(loop.heard.number)
    return result


class Loop:
    """`run` is the whole story of a training run; `state` is what the run changes."""

    def __init__(
        self,
        prepared: Prepared,
        session: Session,
        identity: Callable[[], Mapping[str, Any]] = dict,
        resume: Path | None = None,
    ) -> None:
        self.plan, self.base, self.session, self.resume = prepared.plan, prepared.base, session, resume
        self.emit, self.settings = session.emit, prepared.plan.recipe.train
        self.state = TrainingState(prepared, session)
        self.total_steps = self.state.total_steps
        self.steps_per_epoch = self.state.batches.steps_per_epoch
        self.every = self.settings.evaluate_every or self.steps_per_epoch
        self.heard = interrupts.Heard()
        self.keeper = Keeper(self.state, identity)

    def run(self) -> Result:
        state = self.state
        state.begin()
        state.rehearsed = rehearse(state) if self.settings.rehearse and self.resume is None else None
        self._started()
        began = time.monotonic()
        progress = self.keeper.restore(self.resume) if self.resume else TrainingProgress(0, Position(), self.state.best)
        if not progress.evaluated:  # the checkpoint was written in a hurry
            progress = self._evaluated(progress)
        steps = self.state.batches.steps(progress.position)
        while progress.step < self.total_steps and not progress.ended and not self._patience_ran_out():
            position, micro_batches = next(steps)
            self.state.epoch = position.epoch if position.index else position.epoch - 1
            progress = TrainingProgress(progress.step + 1, position, self.state.best)
            self.emit.step = progress.step
            signalled, overdue = self._step(micro_batches, progress)
            last = progress.step == self.total_steps or self.emit.control.reason is not None
            due = progress.step % self.every == 0 or last
            if signalled or self._signalled:
                self.keeper.interrupted(replace(progress, evaluated=not due), self.heard)
            if due:
                progress = self._evaluated(progress)
            if self._signalled:
                self.keeper.interrupted(progress, self.heard)
            progress = replace(progress, ended=self._stopped)
            if overdue or (self.settings.checkpoint_every and progress.step % self.settings.checkpoint_every == 0):
                self.keeper.save(progress)
            if self._stopped is not None:
                if not due:  # asked for since
                    progress = self._evaluated(progress)
                progress = replace(progress, ended=self._stopped)
                break
        reason = progress.ended or "all steps done"
        if self._patience_ran_out():
            reason = f"no better {self.plan.task.judge(self.base.setting)[0]} in {self.state.best.since} evaluations"
        self._ended(progress)
        delivered = self._deliver_best(progress.step)
        self.emit(TrainFinished(reason=reason, best_step=delivered, seconds=time.monotonic() - began))
        rehearsed = None if self.state.halvings else self.state.rehearsed  # halved, the batch was none of this run's
        keep = partial(self.keeper.save_end, progress)
        return Result(progress.step, delivered, self.state.metrics, reason, rehearsed, keep)

    @property
    def _stopped(self) -> str | None:
        reason = self.emit.control.reason
        return None if reason is None else f"stopped: {reason}"

    @property
    def _signalled(self) -> bool:
        """With several ranks each hears signals at a moment of its own: they agree within the step."""
        return self.state.ranks == 1 and self.heard.number is not None

    def _patience_ran_out(self) -> bool:
        return bool(self.settings.patience) and self.state.best.since >= (self.settings.patience or 0)

    def _evaluated(self, progress: TrainingProgress) -> TrainingProgress:
        with self.keeper.kept(replace(progress, evaluated=False)):
            self._evaluate(progress.step)
        self.state.watch.evaluated()
        return replace(progress, best=self.state.best, evaluated=True)

    def _started(self) -> None:
        self.emit(
            TrainStarted(
                total_steps=self.total_steps,
                trainable_parameters=sum(p.numel() for p in self.state.parameters.values()),
                parameters=self.plan.facts.parameters,
                world_size=self.state.ranks,
            )
        )
        chosen = -(-self.total_steps // self.every) if self.settings.keep_best else 1
        doubt = verdict.few_rows(len(self.state.held_out.examples), chosen)
        if doubt is not None:
            self.emit(Notice(text=doubt))

    def _step(self, micro_batches: list[list[int]], progress: TrainingProgress) -> tuple[bool, bool]:
        """One optimiser step; whether some rank was signalled to end, and whether a checkpoint is overdue."""
        began = time.monotonic()
        rows = [i for batch in micro_batches for i in batch]
        rate = self.state.optimizer.param_groups[0]["lr"]
        result = self.state.optimise(micro_batches, f"step {progress.step}")
        advance(self.state.scheduler, result)
        self.plan.adapter.after_step(self.state.adapted.model, progress.step)
        wishes = (self.heard.number is not None, self.keeper.overdue)
        loss, signalled, overdue = self.state.over_ranks(result.loss, *map(float, wishes))
        self.emit(
            StepDone(
                loss=loss,
                learning_rate=rate,
                grad_norm=result.grad_norm,
                epoch=progress.step / self.steps_per_epoch,
                rows=len(rows),
                tokens=sum(self.state.data.examples[i]["length"] for i in rows),
                seconds=time.monotonic() - began,
                memory=memory_in_use(self.plan.choice.device),
            )
        )
        return signalled > 0, overdue > 0

    def _ended(self, progress: TrainingProgress) -> None:
        """What was learnt is not delivered where it cannot be trusted, and not lost either."""
        try:
            self.state.watch.finished()
        except RunError:
            self.keeper.save(progress)
            raise
        if self._signalled:
            self.keeper.interrupted(progress, self.heard)
        if self.state.over_ranks(float(self.keeper.worthwhile(progress)))[0]:
            self.keeper.save(progress)

    def _evaluate(self, step: int) -> None:
        order = by_length([e["length"] for e in self.state.held_out.examples], self.settings.batch_size)
        metrics, _ = evaluate(self.state.predictor, self.state.held_out, order, self.state.fewer_rows)
        name, direction = self.plan.task.judge(self.base.setting)
        value = metrics[name]
        if math.isnan(value):
            self.session.warn(
                f"{name} of the held-out rows is no number after step {step}: it counts as worse than any other"
            )
        better = verdict.is_better(
            metrics, self.state.metrics if self.state.best.value is not None else None, name, direction
        )
        if better or not self.settings.keep_best:
            self.state.best = Best(step, value)
            self.state.metrics = metrics
            self.state.best_state, self.state.best_adapter = {}, None
            if self.settings.keep_best and step < self.total_steps:
                self.state.remember()
        else:
            self.state.best = replace(self.state.best, since=self.state.best.since + 1)
        self.emit(Evaluated(metrics=metrics, primary=name, best=better))

    def _deliver_best(self, step: int) -> int:
        """Put what the best evaluation judged back into the model; returns its step."""
        if self.state.best.step == step or not self.state.best_state:
            return self.state.best.step
        self.state.adapted.put_back(self.state.best_state)
        self.plan.adapter.restore_training_state(self.state.adapted.model, self.state.best_adapter)
        metric, _ = self.plan.task.judge(self.base.setting)
        self.emit(Notice(text=f"the adapter of step {self.state.best.step} is delivered: it has the best {metric}"))
        return self.state.best.step
