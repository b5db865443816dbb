"""When the loop's state is written, what of it, and how a run goes on from it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from pefttool.api.errors import Interrupted, RunError
from pefttool.api.events import Notice, Resumed, Saved
from pefttool.runs import checkpoint
from pefttool.runs.progress import Beside, Live, Progress
from pefttool.runs.run_folder import CHECKPOINTS
from pefttool.setup import random_state
from pefttool.training.rehearsal import Rehearsed

if TYPE_CHECKING:
    from pefttool.training.loop import Loop


#: Seconds of training that are worth a checkpoint at the end.
WORTH = 60


class Keeper:
    """Of one loop. Rank 0 writes; every rank must call `save`, `interrupted` and `restore` when one does."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.folder = loop.folder / CHECKPOINTS
        self.newest: int | None = None
        self._saved = time.monotonic()

    def worthwhile(self, progress: Progress) -> bool:
        """At the end, for rank 0: what comes after the last step may fail, and so much would be trained again."""
        wanted = self.loop.settings.checkpoint_minutes is not None or self.loop.settings.checkpoint_every is not None
        known = self.newest == progress.step or not self.loop.accelerator.is_main_process
        return wanted and not known and time.monotonic() - self._saved >= WORTH

    @property
    def overdue(self) -> bool:
        """By this rank's clock; only rank 0's counts."""
        minutes = self.loop.settings.checkpoint_minutes
        timed = minutes is not None and self.loop.accelerator.is_main_process
        return timed and time.monotonic() - self._saved >= 60 * (minutes or 0)

    def live(self) -> Live:
        return Live(self.loop.parameters, self.loop.optimizer, self.loop.scheduler, self.loop.scaler)

    def save(self, progress: Progress) -> bool:
        """A checkpoint of this step; False, and a notice, where the disk fails: the run goes on.

        Raises RunError where the frozen base has changed: what was learnt beside it would not be told from what fits.
        """
        loop = self.loop
        loop.watch.saving()
        random = random_state.of_ranks(loop.accelerator)
        self._saved = time.monotonic()
        return self._write(progress, random) if loop.accelerator.is_main_process else True

    def save_end(self, progress: Progress) -> bool:
        """For rank 0 alone, after training: whether there is a checkpoint of the end.

        The delivered parameters stand for the last ones: what is left to do needs no others.
        """
        return self.newest == progress.step or self._write(progress, [random_state.capture()])

    @contextmanager
    def kept(self, progress: Progress) -> Iterator[None]:
        """Where what is done within fails, there is a checkpoint of what was learnt until then.

        Several processes cannot agree on one: another may not have failed.
        """
        try:
            yield
        except Exception:
            try:
                saved = self.loop.ranks == 1 and self.save(progress)
            except RunError:  # the frozen base has changed: nothing is kept, and what failed first is told
                saved = False
            if saved:
                text = f"step {progress.step} is kept: go on with `pefttool resume {self.loop.folder}`"
                self.loop.emit(Notice(text=text, level="warning"))
            raise

    def _write(self, progress: Progress, random: Sequence[str]) -> bool:
        loop = self.loop
        progress = replace(
            progress,
            best=loop.best,
            metrics=dict(loop.metrics),
            halvings=loop.halvings,
            skipped=loop.non_finite.in_a_row,
            watched=loop.watch.state,
            rehearsed=None if loop.rehearsed is None else vars(loop.rehearsed),
        )
        beside = Beside(
            best=loop.best_state if loop.best.step != progress.step else {},
            best_adapter=loop.best_adapter if loop.best.step != progress.step else None,
            buffers=loop.adapted.changed_buffers(),
            adapter=loop.plan.adapter.training_state(loop.adapted.model),
            random=random,
            identity=loop.identity(),
        )
        try:
            path = checkpoint.save(self.folder, progress, self.live(), beside)
        except OSError as error:
            known = f"step {self.newest}" if self.newest is not None else "none"
            what = f"the checkpoint of step {progress.step} cannot be written ({error.strerror or error})"
            text = f"{what}: the run goes on; make room; its newest checkpoint: {known}"
            loop.emit(Notice(text=text, level="warning"))
            return False
        self.newest = progress.step
        checkpoint.prune(self.folder, loop.settings.keep_checkpoints, progress.step)
        loop.emit(Saved(path=str(path), what="checkpoint"))
        return True

    def interrupted(self, progress: Progress) -> NoReturn:
        """End the run after a signal, so that it can go on. Raises Interrupted."""
        saved, name, number = self.save(progress), self.loop.heard.name, self.loop.heard.number or 0
        if not number:  # another rank's
            name, number = "a signal", 2
        folder = self.loop.folder
        if saved or self.newest is not None:
            at = f"after step {progress.step}, with a checkpoint" if saved else f"after step {progress.step}"
            raise Interrupted(f"{name} {at}: go on with `pefttool resume {folder}`", number)
        raise Interrupted(f"{name} after step {progress.step}, and no checkpoint could be written: start again", number)

    def restore(self) -> Progress:
        """Put the checkpoint's state into the loop. Raises RunError where it does not fit."""
        loop = self.loop
        assert loop.resume is not None
        progress, beside = checkpoint.load(loop.resume, self.live(), loop.accelerator.process_index)
        known = {*loop.parameters, *loop.adapted.buffers}
        unknown = sorted({*beside.buffers, *beside.best} - known)
        if unknown:
            raise RunError(f"checkpoint {loop.resume} holds {unknown[0]!r}, which this model lacks: restore the base")
        loop.adapted.put_back(beside.buffers)
        loop.plan.adapter.restore_training_state(loop.adapted.model, beside.adapter)
        loop.best, loop.metrics = progress.best, progress.metrics
        loop.halvings, loop.non_finite.in_a_row = progress.halvings, progress.skipped
        loop.watch.resumed(progress.watched)
        if progress.rehearsed is not None:
            loop.rehearsed = Rehearsed(tuple(progress.rehearsed["rows"]), progress.rehearsed["peak_bytes"])
        loop.best_state, loop.best_adapter = dict(beside.best), beside.best_adapter
        if not beside.best and loop.settings.keep_best and progress.best.step == progress.step < loop.total_steps:
            loop.remember()
        self.newest = progress.step
        loop.emit.step = progress.step
        loop.emit(Resumed(checkpoint=str(loop.resume)))
        return progress
