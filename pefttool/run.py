"""The picture of the system: eight stages, called in order, from a recipe to a finished run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pefttool.api.errors import (
    DataError,
    Interrupted,
    ModelError,
    PefttoolError,
    PluginError,
    Refused,
    UsageError,
)
from pefttool.api.events import Notice, Progress, RunFinished, RunStarted
from pefttool.config import sizes
from pefttool.config.emitter import Emitter
from pefttool.config.recipe import Recipe
from pefttool.config.registry import Registry
from pefttool.data import corpus
from pefttool.data.corpus import CheckedRows, Corpus
from pefttool.files import store
from pefttool.files.store import Store
from pefttool.forecast import budget, forecast
from pefttool.inference import before_after, examples, features, missing_weights
from pefttool.runs import artefacts, resuming, run_folder
from pefttool.runs.resuming import Resume
from pefttool.setup import attach, base, plan, techniques
from pefttool.setup.plan import Plan
from pefttool.setup.prepared import Prepared, Session
from pefttool.training import finishing, interrupts, loop
from pefttool.training.finishing import Finished

#: What the user has to mend before anything can train.
REFUSED = (UsageError, Refused, PluginError, DataError, ModelError)


@dataclass(frozen=True)
class Request:
    """What was asked for: a recipe to run, or a run to go on with."""

    recipe: Recipe
    registry: Registry
    skip_bad_rows: bool = False
    resume: Resume | None = None


def run(recipe: Recipe, registry: Registry, skip_bad_rows: bool = False, resume: Resume | None = None) -> Finished:
    """Fine-tune as the recipe says, or go on with a run. Raises PefttoolError; what was finished by then stays.

    Ctrl-C and SIGTERM raise Interrupted, which says how to go on.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=recipe.device == "cpu")
    emit = Emitter(registry.plugins, accelerator.process_index)
    with ExitStack() as held:
        held.callback(emit.close)
        try:
            with interrupts.raising():
                return _run(Request(recipe, registry, skip_bad_rows, resume), accelerator, emit, held)
        except PefttoolError as error:
            emit(Notice(text=str(error), level="error"))
            raise
        except interrupts.Raised as signalled:
            way_on = "start again with the same command" if emit.folder is None else run_folder.way_on(emit.folder)
            raise Interrupted(f"interrupted: {way_on}", signalled.number) from signalled


def _run(asked: Request, accelerator: Any, emit: Emitter, held: ExitStack) -> Finished:
    """The eight stages, and between them what each needs to know of the one before."""
    planned = plan.make(asked.recipe, asked.registry, accelerator.num_processes)
    kept = store.of_user(lambda text: emit(Notice(text=text, level="warning")))
    planned, read = _within_budget(asked, planned, kept)
    session = _open(asked, planned, accelerator, emit, held)

    rows = corpus.load(
        planned.recipe, asked.registry, skip_bad_rows=asked.skip_bad_rows, rejects=_rejects(session), found=read
    )
    session.tell(rows.notices)
    planned = planned.settled(rows.options)
    identity = _identity(asked, planned, rows, session)

    loaded = base.load(planned, rows.labels, _progress(session), rows.fitted)
    session.tell(loaded.notices)
    cache = kept if planned.recipe.data.cache else None

    data = examples.encode(planned, loaded, rows, cache, session, _bad_rows(asked, session))
    planned, loaded = missing_weights.settle(planned, loaded, data.train, session.warn)
    comparison = before_after.Comparison(planned, emit)
    loaded = comparison.once_loaded(loaded, data)

    adapted = attach.attach(loaded.model, planned.adapter, planned.recipe.adapter_options, loaded.facts)
    missing_weights.require_trained(planned, loaded, adapted, session.warn)
    techniques.apply(planned, adapted)
    loaded = comparison.once_attached(loaded, adapted, data)

    prepared = features.settle(Prepared(planned, loaded, adapted, data), cache, session)
    comparison.once_prepared(prepared)

    start = None if asked.resume is None else asked.resume.checkpoint
    result = loop.train(prepared, session, identity, start)

    memory_of = functools.partial(forecast.compare, planned, loaded.setting, prepared.data.train, emit)
    finished = finishing.finish(prepared, session, result, comparison, memory_of, rows.sha256)
    return _ended(finished, session)


def _within_budget(asked: Request, planned: Plan, kept: Store) -> tuple[Plan, CheckedRows | None]:
    """(the plan that keeps to `memory.budget`, where there is one; the rows, if they had to be read for it).

    A run that goes on has settled that before.
    """
    given = planned.recipe.memory.budget
    if given is None or asked.resume is not None:
        return planned, None
    read = corpus.read_all(planned.recipe, asked.registry)
    return budget.fit(planned, sizes.parse(given), forecast.known(planned, kept, read)).plan, read


def _open(asked: Request, planned: Plan, accelerator: Any, emit: Emitter, held: ExitStack) -> Session:
    """The run's folder, locked, and what its observers are told first. Raises UsageError where it is not to be had."""
    folder = artefacts.choose_folder(planned) if asked.resume is None else asked.resume.folder
    session = Session(folder, emit, accelerator)
    accelerator.wait_for_everyone()  # before any rank makes the folder, all have chosen the same one
    if session.writes:
        if asked.resume is None:
            held.push(functools.partial(_forget_refused, folder, emit))
        held.enter_context(run_folder.locked(folder))
        if asked.resume is not None:  # is the folder, now locked, still what it was taken for?
            resuming.require_newest(asked.resume)
        elif artefacts.open_folder(folder, planned, session.ranks):
            session.say(f"{folder}: an unfinished run without a checkpoint was there: started over")
        emit.open(folder / run_folder.EVENTS)
    emit(RunStarted(folder=str(folder), adapter=planned.adapter.name, task=planned.task.name, model=planned.model.id))
    session.tell(planned.notices)
    return session


def _forget_refused(folder: Path, emit: Emitter, kind: Any, error: BaseException | None, trace: Any) -> None:
    """Once the lock is free: a run that never began is not worth a number. What was in the folder before stays."""
    if isinstance(error, REFUSED) and emit.folder is not None and emit.step == 0:
        emit.close()
        run_folder.forget(folder)


def _identity(asked: Request, planned: Plan, rows: Corpus, session: Session) -> Callable[[], Mapping[str, Any]]:
    """What this run depends on, worked out once. A run that goes on is compared with what it was."""
    identity = functools.cache(lambda: resuming.identity(planned, rows, session.ranks, asked.skip_bad_rows))
    if asked.resume is not None:
        for text in (*asked.resume.skipped, *resuming.check(asked.resume, identity())):
            session.warn(text)
    return identity


def _progress(session: Session) -> Callable[[str, int, int], None]:
    return lambda what, done, total: session.emit(Progress(what=what, done=done, total=total))


def _rejects(session: Session) -> Path | None:
    return session.folder / run_folder.REJECTS if session.writes else None


def _bad_rows(asked: Request, session: Session) -> Callable[..., None]:
    """Who is told of rows that cannot be encoded: the user, or nobody, since there is none without them."""
    way_out = "mend them, or use a model that takes them"  # what columns are is settled by now

    def told(problems: Any, good: int) -> None:
        session.say(corpus.bad_rows(problems, good, asked.skip_bad_rows, _rejects(session), way_out=way_out))

    return told


def _ended(finished: Finished, session: Session) -> Finished:
    """The run, once all ranks are done. Raises RunError for what failed after the last step."""
    session.accelerator.wait_for_everyone()
    if finished.error is not None:
        raise finished.error
    session.emit(
        RunFinished(
            before=finished.before, after=finished.after, samples=finished.samples, adapter=str(finished.adapter)
        )
    )
    return finished
