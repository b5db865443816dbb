"""What a run has between two optimiser steps, and the step itself: whole or not at all, in whatever memory there is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import RunError
from pefttool.api.values import Loss
from pefttool.data.batches import Batches
from pefttool.inference.out_of_memory import out_of_memory, release, split
from pefttool.inference.predictor import Predictor
from pefttool.runs.progress import Best, Restorable
from pefttool.setup.precision import autocast, grad_scaler
from pefttool.setup.prepared import Prepared, Session
from pefttool.setup.random_state import RandomState
from pefttool.training.non_finite import NonFinite
from pefttool.training.optimisation import (
    Attempt,
    Ranks,
    StepResult,
    Update,
    check_rates,
    make_optimizer,
    make_schedule,
    optimizer_step,
)
from pefttool.training.sanity_checks import Watch

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Rehearsed:
    """The rows of the longest batch, and what the device's allocator had handed out at most (None: not known).

    `evaluated_more`: the batch of held-out rows that was evaluated beside it has more tokens, padding included.
    """

    rows: tuple[int, ...]
    peak_bytes: int | None
    evaluated_more: bool = False


class TrainingState:
    """Everything that changes while a run trains, and what changes it: `optimise`.

    `model` is the adapted model as all ranks train it, `optimizer` and `scaler` what a step is applied with.
    """

    def __init__(self, prepared: Prepared, session: Session) -> None:
        self.plan, self.base, self.adapted = prepared.plan, prepared.base, prepared.adapted
        self.data, self.held_out = prepared.data.train, prepared.data.held_out
        self.session, self.ranks = session, session.ranks
        self.settings = settings = self.plan.recipe.train
        self.batches = Batches(
            tuple(e["length"] for e in self.data.examples),
            settings.batch_size,
            settings.gradient_accumulation * self.ranks,
            settings.seed,
            settings.batch_tokens,
            self.base.setting.packing,
        )
        self.total_steps = self.batches.total_steps(settings.epochs, settings.max_steps)
        self.epoch = 0
        self.plan.adapter.prepare(self.adapted.model, self._first_losses())
        self.parameters = self.adapted.parameters()
        self.optimizer = make_optimizer(self.adapted, self.plan.adapter, settings)
        self.scheduler = make_schedule(self.optimizer, settings, self.total_steps)
        check_rates(self.scheduler, settings, self.total_steps)
        self.scaler = grad_scaler(self.plan.choice)
        self.best = Best()
        self.best_state: Mapping[str, Tensor] = {}
        self.best_adapter: Any = None
        self.metrics: Mapping[str, float] = {}
        self.halvings = 0
        self.rehearsed: Rehearsed | None = None
        self.watch = Watch(self.adapted, self.optimizer, session.warn, self.plan.adapter.trains_base)
        self.non_finite = NonFinite(self.adapted.model, self.data.rows, settings, session.rank, session.warn)
        self.model: nn.Module = self.adapted.model

    def _first_losses(self) -> Iterator[Loss]:
        """The losses of the first epoch's batches, each computed when it is asked for."""
        for rows in (rows for step in self.batches.epoch(0) for rows in step):
            with autocast(self.plan.choice):
                loss = self.predictor.loss(self._batch(rows))
            yield loss

    def begin(self) -> None:
        """Let ranks share gradients, and put the model into training mode.

        Dropout works where something trains; anything frozen below that gives its evaluation features.
        """
        if self.ranks > 1:
            # Only the model is prepared: a prepared scheduler steps world-size times, a prepared loader repeats rows.
            self.model = self.session.accelerator.prepare_model(self.adapted.model)
        self.adapted.model.train()
        for module in self.adapted.eval_modules:
            module.eval()

    @property
    def predictor(self) -> Predictor:
        """The adapted model, as evaluation asks it."""
        return Predictor.of(self.plan, self.base, self.adapted.model)

    def live(self) -> Restorable:
        """What a checkpoint holds the state of."""
        return Restorable(self.parameters, self.optimizer, self.scheduler, self.scaler)

    def optimise(self, micro_batches: list[list[int]], name: str) -> StepResult:
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
                    Predictor.of(self.plan, self.base, self.model),
                    Update(self.optimizer, self.scaler, list(self.parameters.values()), self.settings.max_grad_norm),
                    self._micro_batches(parts),
                    weight,
                    Ranks(self.ranks, lambda: self.session.accelerator.no_sync(self.model)),
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
            rank = f"{failed} in process {self.session.rank} of {self.ranks}"
            raise RunError(f"{rank}: lower train.batch_size ({self.settings.batch_size}), or use train.batch_tokens")
        if attempt.phase == "optimizer":
            if attempt.applied or not once_more:
                raise RunError(f"{failed} in the update itself: use a train.optimizer with less state")
            self.session.warn(f"{failed} before the update was applied: the step is done again")
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
        self.session.warn(text)

    def _micro_batches(self, micro_batches: list[list[int]]) -> Iterator[tuple[dict[str, Tensor], bool]]:
        """This rank's share; a filler where there are fewer than ranks, since every rank must take part."""
        rank = self.session.rank
        rounds = -(-len(micro_batches) // self.ranks)
        for i in range(rounds):
            at = i * self.ranks + rank
            rows = micro_batches[at] if at < len(micro_batches) else micro_batches[0][:1]
            yield self._batch(rows), at < len(micro_batches)

    def _batch(self, rows: list[int]) -> dict[str, Tensor]:
        predictor = replace(self.predictor, setting=replace(self.base.setting, epoch=self.epoch))
        return predictor.batch([self.data.examples[row] for row in rows])

    def over_ranks(self, *values: float) -> tuple[float, ...]:
        """The sums over all ranks, which so agree on what they do next."""
        if self.ranks == 1:
            return values
        import torch

        totals: Tensor = self.session.accelerator.reduce(
            torch.tensor(values, device=self.session.accelerator.device, dtype=torch.float32), reduction="sum"
        )
        return tuple(totals.tolist())

    def remember(self) -> None:
        """Keep the model that the evaluation of now judged: its tensors, and what its adapter goes by besides."""
        self.best_state = self.adapted.state()
        self.best_adapter = copy.deepcopy(self.plan.adapter.training_state(self.adapted.model))

    @property
    def fewer_rows(self) -> Callable[[str], object] | None:
        """Who is told that evaluation halved its batches; None where it may not: ranks must find the same figures."""
        return None if self.ranks > 1 else self.session.warn
