"""Stage 7: the loop, on accelerate. One optimiser step after another; emits events; keeps the best evaluation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import RunError
from pefttool.api.events import Evaluated, Notice, StepDone, TrainFinished, TrainStarted
from pefttool.config.emitter import Emitter
from pefttool.data.batches import FEATURES, Batches, Encoded, Position, by_length, collate, to_device
from pefttool.inference import verdict
from pefttool.inference.evaluate import evaluate
from pefttool.inference.out_of_memory import out_of_memory, release, split
from pefttool.runs.progress import Best, Progress
from pefttool.setup.attach import Adapted
from pefttool.setup.base import Base
from pefttool.setup.devices import memory_in_use
from pefttool.setup.plan import Plan
from pefttool.setup.precision import grad_scaler
from pefttool.setup.random_state import RandomState
from pefttool.training import interrupts
from pefttool.training.checkpointing import Keeper
from pefttool.training.non_finite import NonFinite
from pefttool.training.optimisation import (
    Attempt,
    StepResult,
    advance,
    check_rates,
    make_optimizer,
    make_schedule,
    optimizer_step,
)
from pefttool.training.rehearsal import Rehearsed, rehearse
from pefttool.training.sanity_checks import Watch

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn


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
    plan: Plan,
    base: Base,
    adapted: Adapted,
    data: Encoded,
    held_out: Encoded,
    emit: Emitter,
    accelerator: Accelerator,
    folder: Path,
    identity: Callable[[], Mapping[str, Any]] = dict,
    resume: Path | None = None,
) -> Result:
    """Train until the last step, until patience runs out, or until an observer asks to stop.

    `identity` says what checkpoints store of that (resuming.py); `resume` is the one to go on from. Raises Interrupted
    after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    loop = Loop(plan, base, adapted, data, held_out, emit, accelerator, folder, identity, resume)
    with interrupts.waiting() as loop.heard:
        result = loop.run()
    if loop.heard.number is not None:  # after the last step
        raise interrupts.Raised(loop.heard.number)
    return result


class Loop:
    """The state of a training run; `run` is its whole story."""

    def __init__(
        self,
        plan: Plan,
        base: Base,
        adapted: Adapted,
        data: Encoded,
        held_out: Encoded,
        emit: Emitter,
        accelerator: Accelerator,
        folder: Path,
        identity: Callable[[], Mapping[str, Any]] = dict,
        resume: Path | None = None,
    ) -> None:
        self.plan, self.base, self.adapted, self.data, self.held_out = plan, base, adapted, data, held_out
        self.emit, self.accelerator, self.folder = emit, accelerator, folder
        self.identity, self.resume = identity, resume
        self.settings = plan.recipe.train
        self.ranks = accelerator.num_processes
        self.batches = Batches(
            tuple(e["length"] for e in data.examples),
            self.settings.batch_size,
            self.settings.gradient_accumulation * self.ranks,
            self.settings.seed,
            self.settings.batch_tokens,
            base.setting.packing,
        )
        self.total_steps = self.batches.total_steps(self.settings.epochs, self.settings.max_steps)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.every = self.settings.evaluate_every or self.steps_per_epoch
        self.epoch = 0
        batches = (self._collate(rows) for step in self.batches.epoch(0) for rows in step)
        plan.adapter.prepare(adapted.model, ({k: v for k, v in b.items() if k != FEATURES} for b in batches))
        self.parameters = adapted.parameters()
        self.optimizer = make_optimizer(adapted, plan.adapter, self.settings)
        self.scheduler = make_schedule(self.optimizer, self.settings, self.total_steps)
        check_rates(self.scheduler, self.settings, self.total_steps)
        self.scaler = grad_scaler(plan.choice)
        self.best, self.best_state, self.metrics = Best(), {}, {}  # type: tuple[Best, dict[str, Tensor], Mapping[str, float]]
        self.best_adapter: Any = None
        self.halvings, self.rehearsed = 0, None  # type: int, Rehearsed | None
        self.watch = Watch(adapted, self.optimizer, self._warn, plan.adapter.trains_base)
        self.non_finite = NonFinite(adapted.model, data.rows, self.settings, accelerator.process_index, self._warn)
        self.heard = interrupts.Heard()
        self.keeper = Keeper(self)

    def run(self) -> Result:
        model = self._distributed()
        self._training_mode()
        self.rehearsed = rehearse(self, model) if self.settings.rehearse and self.resume is None else None
        self._started()
        began = time.monotonic()
        progress = self.keeper.restore() if self.resume else Progress(0, Position(), self.best)
        if not progress.evaluated:  # the checkpoint was written in a hurry
            progress = self._evaluated(progress)
        steps = self.batches.steps(progress.position)
        while progress.step < self.total_steps and not progress.ended and not self._patience_ran_out():
            position, micro_batches = next(steps)
            self.epoch = position.epoch if position.index else position.epoch - 1
            progress = Progress(progress.step + 1, position, self.best)
            self.emit.step = progress.step
            signalled, overdue = self._step(model, micro_batches, progress)
            last = progress.step == self.total_steps or self.emit.control.reason is not None
            due = progress.step % self.every == 0 or last
            if signalled or self._signalled:
                self.keeper.interrupted(replace(progress, evaluated=not due))
            if due:
                progress = self._evaluated(progress)
            if self._signalled:
                self.keeper.interrupted(progress)
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
            reason = f"no better {self.plan.task.judge(self.base.setting)[0]} in {self.best.since} evaluations"
        self._ended(progress)
        delivered = self._deliver_best(progress.step)
        self.emit(TrainFinished(reason=reason, best_step=delivered, seconds=time.monotonic() - began))
        rehearsed = None if self.halvings else self.rehearsed  # halved, the batch was none of this run's
        keep = partial(self.keeper.save_end, progress)
        return Result(progress.step, delivered, self.metrics, reason, rehearsed, keep)

    @property
    def _stopped(self) -> str | None:
        reason = self.emit.control.reason
        return None if reason is None else f"stopped: {reason}"

    @property
    def _signalled(self) -> bool:
        """With several ranks each hears signals at a moment of its own: they agree within the step."""
        return self.ranks == 1 and self.heard.number is not None

    def _patience_ran_out(self) -> bool:
        return bool(self.settings.patience) and self.best.since >= (self.settings.patience or 0)

    def _evaluated(self, progress: Progress) -> Progress:
        with self.keeper.kept(replace(progress, evaluated=False)):
            self._evaluate(progress.step)
        self.watch.evaluated()
        return replace(progress, best=self.best, evaluated=True)

    def _distributed(self) -> nn.Module:
        # Only the model is prepared: a prepared scheduler steps world-size times, a prepared loader repeats rows.
        model: nn.Module = self.accelerator.prepare_model(self.adapted.model) if self.ranks > 1 else self.adapted.model
        return model

    def _started(self) -> None:
        self.emit(
            TrainStarted(
                total_steps=self.total_steps,
                trainable_parameters=sum(p.numel() for p in self.parameters.values()),
                parameters=self.plan.facts.parameters,
                world_size=self.ranks,
            )
        )
        chosen = -(-self.total_steps // self.every) if self.settings.keep_best else 1
        doubt = verdict.few_rows(len(self.held_out.examples), chosen)
        if doubt is not None:
            self.emit(Notice(text=doubt))

    def _training_mode(self) -> None:
        """Dropout where something trains; what is frozen below that gives its evaluation features."""
        self.adapted.model.train()
        for module in self.adapted.still:
            module.eval()

    def _step(self, model: nn.Module, micro_batches: list[list[int]], progress: Progress) -> tuple[bool, bool]:
        """One optimiser step; whether some rank was signalled to end, and whether a checkpoint is overdue."""
        began = time.monotonic()
        rows = [i for batch in micro_batches for i in batch]
        rate = self.optimizer.param_groups[0]["lr"]
        result = self.optimise(model, micro_batches, f"step {progress.step}")
        advance(self.scheduler, result)
        self.plan.adapter.after_step(self.adapted.model, progress.step)
        wishes = (self.heard.number is not None, self.keeper.overdue)
        loss, signalled, overdue = self._over_ranks(result.loss, *map(float, wishes))
        self.emit(
            StepDone(
                loss=loss,
                learning_rate=rate,
                grad_norm=result.grad_norm,
                epoch=progress.step / self.steps_per_epoch,
                rows=len(rows),
                tokens=sum(self.data.examples[i]["length"] for i in rows),
                seconds=time.monotonic() - began,
                memory=memory_in_use(self.plan.choice.device),
            )
        )
        return signalled > 0, overdue > 0

    def optimise(self, model: nn.Module, micro_batches: list[list[int]], name: str) -> StepResult:
        """One optimiser step over these rows, whole or not at all; `name` is what messages call it.

        Where memory runs out, the step begins again with the micro-batches halved, for this and all later steps.
        """
        weight = float(sum(self.data.examples[i]["weight"] for batch in micro_batches for i in batch))
        self.non_finite.begin()
        random = RandomState(self.plan.choice.device)
        once_more = True
        while True:
            attempt = Attempt(self.optimizer)
            parts = split(micro_batches, self.batches.lengths, self.halvings)
            try:
                result = optimizer_step(
                    model,
                    list(self.parameters.values()),
                    self._micro_batches(parts),
                    weight,
                    self.plan.task,
                    self.base.setting,
                    self.plan.choice,
                    self.optimizer,
                    self.scaler,
                    self.settings.max_grad_norm,
                    self.ranks,
                    lambda: self.accelerator.no_sync(model),
                    attempt.enter,
                )
            except RunError as error:
                raise RunError(f"{name}: {error}") from error
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            else:
                return self.non_finite.judge(result, name, parts, self.ranks, self.scaler.is_enabled())
            self._free()
            self._smaller(micro_batches, attempt, name, once_more)
            once_more = once_more and attempt.phase != "optimizer"
            random.restore()

    def _free(self) -> None:
        """Forget a step that failed: its gradients, and what the scaler knows of them."""
        self.optimizer.zero_grad(set_to_none=True)
        scale = self.scaler.state_dict()
        self.scaler = grad_scaler(self.plan.choice)
        self.scaler.load_state_dict(scale)
        release(self.plan.choice.device)

    def _smaller(self, micro_batches: list[list[int]], attempt: Attempt, name: str, once_more: bool) -> None:
        """Decide how a step that failed is tried again, and say so. Raises RunError where it cannot."""
        lengths, failed = self.batches.lengths, f"{name}: memory ran out"
        if self.ranks > 1:  # the others wait for this one's gradients: they cannot be told
            rank = f"{failed} in process {self.accelerator.process_index} of {self.ranks}"
            raise RunError(f"{rank}: lower train.batch_size ({self.settings.batch_size}), or use train.batch_tokens")
        if attempt.phase == "optimizer":
            if attempt.applied or not once_more:
                raise RunError(f"{failed} in the update itself: use a train.optimizer with less state")
            self.emit(Notice(text=f"{failed} before the update was applied: the step is done again", level="warning"))
            return
        now, later = (split(micro_batches, lengths, self.halvings + more) for more in (0, 1))
        if now == later:
            longest = max(lengths[row] for batch in now for row in batch)
            raise RunError(
                f"{failed} with one row of {longest} tokens: lower train.sequence_length"
                f" ({self.settings.sequence_length}), or set train.gradient_checkpointing: non-reentrant"
            )
        self.halvings += 1
        text = (
            f"{failed} ({attempt.phase}): from here on micro-batches are halved {self.halvings} times, to at most"
            f" {max(map(len, later))} rows here, and gradients accumulated: steps have the same rows as before"
        )
        self.emit(Notice(text=text, level="warning"))

    def _micro_batches(self, micro_batches: list[list[int]]) -> Iterator[tuple[dict[str, Tensor], bool]]:
        """This rank's share; a filler where there are fewer than ranks, since every rank must take part."""
        rank = self.accelerator.process_index
        rounds = -(-len(micro_batches) // self.ranks)
        for i in range(rounds):
            at = i * self.ranks + rank
            rows = micro_batches[at] if at < len(micro_batches) else micro_batches[0][:1]
            yield self._collate(rows), at < len(micro_batches)

    def _collate(self, rows: list[int]) -> dict[str, Tensor]:
        examples = [self.data.examples[r] for r in rows]
        setting = replace(self.base.setting, epoch=self.epoch)
        tensors = collate(examples, self.plan.task, self.base.processor, setting)
        return to_device(tensors, self.plan.choice.device)

    def _over_ranks(self, *values: float) -> tuple[float, ...]:
        """The sums over all ranks, which so agree on what they do next."""
        if self.ranks == 1:
            return values
        import torch

        totals: Tensor = self.accelerator.reduce(
            torch.tensor(values, device=self.accelerator.device, dtype=torch.float32), reduction="sum"
        )
        return tuple(totals.tolist())

    def _ended(self, progress: Progress) -> None:
        """What was learnt is not delivered where it cannot be trusted, and not lost either."""
        try:
            self.watch.finished()
        except RunError:
            self.keeper.save(progress)
            raise
        if self._signalled:
            self.keeper.interrupted(progress)
        if self._over_ranks(float(self.keeper.worthwhile(progress)))[0]:
            self.keeper.save(progress)

    def _warn(self, text: str) -> None:
        self.emit(Notice(text=text, level="warning"))

    def _evaluate(self, step: int) -> None:
        lengths = [e["length"] for e in self.held_out.examples]
        metrics, _ = evaluate(
            self.adapted.model,
            self.plan.task,
            self.held_out.examples,
            self.held_out.rows,
            by_length(lengths, self.settings.batch_size),
            self.base.processor,
            self.base.setting,
            self.plan.choice,
            self.fewer_rows,
        )
        name, direction = self.plan.task.judge(self.base.setting)
        value = metrics[name]
        if math.isnan(value):
            self._warn(f"{name} of the held-out rows is no number after step {step}: it counts as worse than any other")
        better = verdict.is_better(metrics, self.metrics if self.best.value is not None else None, name, direction)
        if better or not self.settings.keep_best:
            self.best = Best(step, value)
            self.metrics = metrics
            self.best_state, self.best_adapter = {}, None
            if self.settings.keep_best and step < self.total_steps:
                self.remember()
        else:
            self.best = replace(self.best, since=self.best.since + 1)
        self.emit(Evaluated(metrics=metrics, primary=name, best=better))

    def remember(self) -> None:
        """Keep the model that the evaluation of now judged: its tensors, and what its adapter goes by besides."""
        self.best_state = self.adapted.state()
        self.best_adapter = copy.deepcopy(self.plan.adapter.training_state(self.adapted.model))

    @property
    def fewer_rows(self) -> Callable[[str], object] | None:
        """Who is told that evaluation halved its batches; None where it may not: ranks must find the same figures."""
        return None if self.ranks > 1 else self._warn

    def _deliver_best(self, step: int) -> int:
        """Put what the best evaluation judged back into the model; returns its step."""
        if self.best.step == step or not self.best_state:
            return self.best.step
        self.adapted.put_back(self.best_state)
        self.plan.adapter.restore_training_state(self.adapted.model, self.best_adapter)
        metric, _ = self.plan.task.judge(self.base.setting)
        self.emit(Notice(text=f"the adapter of step {self.best.step} is delivered: it has the best {metric}"))
        return self.best.step
