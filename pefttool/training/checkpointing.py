"""When the loop's state is written, what of it, and how a run goes on from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from pefttool.api.errors import Interrupted, RunError
from pefttool.api.events import Resumed, Saved
from pefttool.runs import checkpoint
from pefttool.runs.progress import Extras, TrainingProgress
from pefttool.runs.run_folder import CHECKPOINTS
from pefttool.setup import random_state
from pefttool.training.state import Rehearsed

if TYPE_CHECKING:
    from pathlib import Path

    from pefttool.training.interrupts import Heard
    from pefttool.training.state import TrainingState


#: Seconds of training that are worth a checkpoint at the end.
WORTH = 60


class Keeper:
    """Writes the checkpoints of one run. Rank 0 writes; all ranks must call `save`, `interrupted` and `restore` alike.

    `identity` says what the run depends on (resuming.py).
    """

    def __init__(self, state: TrainingState, identity: Callable[[], Mapping[str, Any]] = dict) -> None:
        self.state, self.session, self.identity = state, state.session, identity
        self.folder = self.session.folder / CHECKPOINTS
        self.newest: int | None = None
        self._saved = time.monotonic()

    def worthwhile(self, progress: TrainingProgress) -> bool:
        """At the end, for rank 0: what comes after the last step may fail, and so much would be trained again."""
        wanted = self.state.settings.checkpoint_minutes is not None or self.state.settings.checkpoint_every is not None
        known = self.newest == progress.step or not self.session.writes
        return wanted and not known and time.monotonic() - self._saved >= WORTH

    @property
    def overdue(self) -> bool:
        """By this rank's clock; only rank 0's counts."""
        minutes = self.state.settings.checkpoint_minutes
        timed = minutes is not None and self.session.writes
        return timed and time.monotonic() - self._saved >= 60 * (minutes or 0)

    def save(self, progress: TrainingProgress) -> bool:
        """A checkpoint of this step; False, and a notice, where the disk fails: the run goes on.

        Raises RunError where the frozen base has changed: what was learnt beside it would not be told from what fits.
        """
        state = self.state
        state.watch.saving()
        random = random_state.of_ranks(self.session.accelerator)
        self._saved = time.monotonic()
        return self._write(progress, random) if self.session.writes else True

    def save_end(self, progress: TrainingProgress) -> bool:
        """For rank 0 alone, after training: whether there is a checkpoint of the end.

        The delivered parameters stand for the last ones: what is left to do needs no others.
        """
        return self.newest == progress.step or self._write(progress, [random_state.capture()])

    @contextmanager
    def kept(self, progress: TrainingProgress) -> Iterator[None]:
        """Where what is done within fails, there is a checkpoint of what was learnt until then.

        Several processes cannot agree on one: another may not have failed.
        """
        try:
            yield
        except Exception:
            try:
                saved = self.state.ranks == 1 and self.save(progress)
            except RunError:  # the frozen base has changed: nothing is kept, and what failed first is told
                saved = False
            if saved:
                text = f"step {progress.step} is kept: go on with `pefttool resume {self.session.folder}`"
                self.session.warn(text)
            raise

    def _write(self, progress: TrainingProgress, random: Sequence[str]) -> bool:
        state = self.state
        progress = replace(
            progress,
            best=state.best,
            metrics=dict(state.metrics),
            halvings=state.halvings,
            skipped=state.non_finite.in_a_row,
            watched=state.watch.state,
            rehearsed=None if state.rehearsed is None else vars(state.rehearsed),
        )
        beside = Extras(
            best=state.best_state if state.best.step != progress.step else {},
            best_adapter=state.best_adapter if state.best.step != progress.step else None,
            buffers=state.adapted.changed_buffers(),
            adapter=state.plan.adapter.training_state(state.adapted.model),
            random=random,
            identity=self.identity(),
        )
        try:
            path = checkpoint.save(self.folder, progress, self.state.live(), beside)
        except OSError as error:
            known = f"step {self.newest}" if self.newest is not None else "none"
            what = f"the checkpoint of step {progress.step} cannot be written ({error.strerror or error})"
            text = f"{what}: the run goes on; make room; its newest checkpoint: {known}"
            self.session.warn(text)
            return False
        self.newest = progress.step
        checkpoint.prune(self.folder, state.settings.keep_checkpoints, progress.step)
        self.session.emit(Saved(path=str(path), what="checkpoint"))
        return True

    def interrupted(self, progress: TrainingProgress, heard: Heard) -> NoReturn:
        """End the run after a signal, so that it can go on. Raises Interrupted."""
        saved, name, number = self.save(progress), heard.name, heard.number or 0
        if not number:  # another rank's
            name, number = "a signal", 2
        folder = self.session.folder
        if saved or self.newest is not None:
            at = f"after step {progress.step}, with a checkpoint" if saved else f"after step {progress.step}"
            raise Interrupted(f"{name} {at}: go on with `pefttool resume {folder}`", number)
        raise Interrupted(f"{name} after step {progress.step}, and no checkpoint could be written: start again", number)

    def restore(self, path: Path) -> TrainingProgress:
        """Put the state of the checkpoint at `path` back. Raises RunError where the checkpoint does not fit."""
        state = self.state
        progress, beside = checkpoint.load(path, self.state.live(), self.session.rank)
        known = {*state.parameters, *state.adapted.buffers}
        unknown = sorted({*beside.buffers, *beside.best} - known)
        if unknown:
            raise RunError(f"checkpoint {path} holds {unknown[0]!r}, which this model lacks: restore the base")
        state.adapted.put_back(beside.buffers)
        state.plan.adapter.restore_training_state(state.adapted.model, beside.adapter)
        state.best, state.metrics = progress.best, progress.metrics
        state.halvings, state.non_finite.in_a_row = progress.halvings, progress.skipped
        state.watch.resumed(progress.watched)
        if progress.rehearsed is not None:
            state.rehearsed = Rehearsed(tuple(progress.rehearsed["rows"]), progress.rehearsed["peak_bytes"])
        state.best_state, state.best_adapter = dict(beside.best), beside.best_adapter
        if not beside.best and state.settings.keep_best and progress.best.step == progress.step < state.total_steps:
            state.remember()
        self.newest = progress.step
        self.session.emit.step = progress.step
        self.session.emit(Resumed(checkpoint=str(path)))
        return progress
