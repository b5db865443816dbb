"""The picture of the system: the eight stages, called in order, and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pefttool.api.errors import DataError, Interrupted, ModelError, PefttoolError, PluginError, Refused, UsageError
from pefttool.api.events import DataReady, Notice, Progress, RunFinished, RunStarted
from pefttool.api.values import DataProblem
from pefttool.config import sizes
from pefttool.config.emitter import Emitter
from pefttool.config.recipe import Recipe
from pefttool.config.registry import Registry
from pefttool.data import batches, corpus
from pefttool.data.batches import Encoded
from pefttool.files import store
from pefttool.files.store import Store
from pefttool.forecast import budget, forecast
from pefttool.inference import before_after, evaluate, features, missing_weights, packing, reference_model, witness
from pefttool.models import vocabulary
from pefttool.runs import artefacts, resuming, run_folder
from pefttool.runs.resuming import Resume
from pefttool.setup import attach, base, plan, techniques
from pefttool.training import finishing, interrupts, loop

#: What the user has to mend before anything can train.
REFUSED = (UsageError, Refused, PluginError, DataError, ModelError)


@dataclass(frozen=True)
class Finished:
    folder: Path
    adapter: Path
    before: Mapping[str, float]
    after: Mapping[str, float]
    samples: tuple[Mapping[str, Any], ...]
    talks: bool
    takes_text: bool
    main_process: bool
    #: The judged metric is better than before training, or as good with a lower loss.
    improved: bool = True
    #: What the trained model answered, for whoever loads the adapter again.
    trained: witness.Witness | None = None


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
                return _run(recipe, registry, skip_bad_rows, resume, accelerator, emit, held)
        except PefttoolError as error:
            emit(Notice(text=str(error), level="error"))
            raise
        except interrupts.Raised as signalled:
            way_on = "start again with the same command" if emit.folder is None else run_folder.way_on(emit.folder)
            raise Interrupted(f"interrupted: {way_on}", signalled.number) from signalled


def _run(
    recipe: Recipe,
    registry: Registry,
    skip_bad_rows: bool,
    resume: Resume | None,
    accelerator: Any,
    emit: Emitter,
    held: ExitStack,
) -> Finished:
    planned = plan.make(recipe, registry, accelerator.num_processes)
    kept = store.of_user(lambda text: emit(Notice(text=text, level="warning")))
    if planned.recipe.memory.budget is not None and resume is None:
        planned = budget.fit(planned, sizes.parse(planned.recipe.memory.budget), forecast.known(planned, kept)).plan
    folder = artefacts.choose_folder(planned) if resume is None else resume.folder
    accelerator.wait_for_everyone()  # before any rank makes the folder, all have chosen the same one
    writes = accelerator.is_main_process
    if writes:
        if resume is None:
            held.push(functools.partial(_forget_refused, folder, emit))
        held.enter_context(run_folder.locked(folder))
        _open(folder, planned, resume, accelerator.num_processes, emit)
    emit(RunStarted(folder=str(folder), adapter=planned.adapter.name, task=planned.task.name, model=planned.model.id))
    _notices(emit, planned.notices)

    rejects = folder / run_folder.REJECTS if writes else None
    rows = corpus.load(planned.recipe, registry, skip_bad_rows=skip_bad_rows, rejects=rejects)
    _notices(emit, rows.notices)
    planned = planned.settled(rows.options)
    identity = functools.cache(lambda: resuming.identity(planned, rows, accelerator.num_processes, skip_bad_rows))
    if resume is not None:
        for text in (*resume.skipped, *resuming.check(resume, identity())):
            emit(Notice(text=text, level="warning"))
    loaded = base.load(
        planned,
        rows.labels,
        lambda what, done, total: emit(Progress(what=what, done=done, total=total)),
        rows.fitted,
    )
    _notices(emit, loaded.notices)
    cache = kept if planned.recipe.data.cache else None
    told = functools.partial(_bad_rows, emit, skip_bad_rows, rejects)
    data, held_out = _encode(planned, loaded, rows, cache, emit, told)
    planned, loaded, lacking = missing_weights.settle(planned, loaded, data)
    _warn(emit, lacking)

    moment = before_after.moment(planned.adapter)
    if moment == "loaded":
        loaded = _settle(planned, loaded, loaded.model, data, emit)
        before, shown = before_after.look(planned, loaded, loaded.model, held_out, emit)
    adapted = attach.attach(loaded.model, planned.adapter, planned.recipe.adapter_options, loaded.facts)
    _warn(emit, missing_weights.require_trained(planned, loaded, adapted))
    moment = before_after.later(moment, adapted)
    techniques.apply(planned, adapted)
    if moment != "loaded" or loaded.setting.packing:  # not by luck of the base alone: the adapter may mix rows
        loaded = _settle(planned, loaded, adapted.model, data, emit)
    ranks = accelerator.num_processes
    adapted, data, held_out = features.settle(planned, loaded, adapted, data, held_out, cache, emit, ranks)
    if moment == "attached":
        before, shown = before_after.look(planned, loaded, adapted.model, held_out, emit)

    untrained = attach.head_values(adapted)
    start = None if resume is None else resume.checkpoint
    result = loop.train(planned, loaded, adapted, data, held_out, emit, accelerator, folder, identity, start)
    seen = None if moment == "trained" else (before, shown)
    memory_of = functools.partial(forecast.compare, planned, loaded.setting, data, emit)
    brought = finishing.finish(
        folder, planned, loaded, adapted, held_out, result, memory_of, seen, untrained, rows.sha256, emit, writes
    )
    accelerator.wait_for_everyone()
    if brought.error is not None:
        raise brought.error
    emit(RunFinished(before=brought.before, after=brought.after, samples=brought.samples, adapter=str(brought.adapter)))
    talks, takes_text = (ask(planned.task, loaded.setting.options) for ask in (evaluate.talks, evaluate.takes_text))
    return Finished(
        folder,
        brought.adapter,
        brought.before,
        brought.after,
        brought.samples,
        talks,
        takes_text,
        writes,
        brought.improved,
        brought.trained,
    )


def _forget_refused(folder: Path, emit: Emitter, kind: Any, error: BaseException | None, trace: Any) -> None:
    """Once the lock is free: a run that never began is not worth a number. What was in the folder before stays."""
    if isinstance(error, REFUSED) and emit.folder is not None and emit.step == 0:
        emit.close()
        run_folder.forget(folder)


def _open(folder: Path, planned: plan.Plan, resume: Resume | None, processes: int, emit: Emitter) -> None:
    """Once the folder is locked: is it still what it was taken for?"""
    if resume is not None:
        resuming.require_newest(resume)
    elif artefacts.open_folder(folder, planned, processes):
        emit(Notice(text=f"{folder}: an unfinished run without a checkpoint was there: started over"))
    emit.open(folder / run_folder.EVENTS)


def _notices(emit: Emitter, texts: Sequence[str]) -> None:
    for text in texts:
        warns = text.startswith("warning: ")
        emit(Notice(text=text.removeprefix("warning: "), level="warning" if warns else "info"))


def _bad_rows(emit: Emitter, skip: bool, rejects: Path | None, problems: Sequence[DataProblem], good: int) -> None:
    way_out = "mend them, or use a model that takes them"  # what columns are is settled by now
    emit(Notice(text=corpus.bad_rows(problems, good, skip, rejects, way_out=way_out)))


def _warn(emit: Emitter, text: str | None) -> None:
    if text is not None:
        emit(Notice(text=text, level="warning"))


def _encode(
    planned: plan.Plan,
    loaded: base.Base,
    rows: corpus.Corpus,
    cache: Store | None,
    emit: Emitter,
    bad_rows: Callable[[Sequence[DataProblem], int], None],
) -> tuple[Encoded, Encoded]:
    def progress(done: int, total: int) -> None:
        emit(Progress(what="encoding", done=done, total=total))

    def asked(done: int, total: int) -> None:
        emit(Progress(what="the base's answers", done=done, total=total))

    processor, setting = loaded.processor, loaded.setting
    data, held_out = (
        batches.encode(
            part,
            planned.task,
            processor,
            setting,
            told,
            cache,
            batches.rows_key(planned.task, planned.registry, planned.model.path, processor, setting, part),
            bad_rows,
        )
        for part, told in ((rows.train, progress), (rows.eval, None))
    )
    for part in (data, held_out):
        vocabulary.check(loaded.model, processor, part.examples, part.rows)
    if reference_model.asks(planned.task):
        data, held_out = (reference_model.settle(planned, loaded, part, cache, asked) for part in (data, held_out))
    for part, which, purpose in ((data, "training rows", "train"), (held_out, "held-out rows", "judge by")):
        if part.dropped:
            emit(Notice(text=batches.left_out(part, which, purpose), level="warning"))
    _notices(emit, planned.task.noted(data.examples, held_out.examples, setting))
    emit(
        DataReady(
            train_rows=len(data.examples),
            eval_rows=len(held_out.examples),
            trained_tokens=data.trained,
            tokens=data.tokens,
            truncated_rows=data.truncated,
            preview=_preview(planned, loaded, data.examples[0]),
        )
    )
    return data, held_out


def _preview(planned: plan.Plan, loaded: base.Base, example: Mapping[str, Any]) -> str:
    """A row as the model sees it, its class by name, too: what is encoded has the number alone."""
    shown, label, names = planned.task.preview(example, loaded.processor), example.get("label"), loaded.setting.labels
    return f"{shown} ({names[label]})" if shown and isinstance(label, int) and label < len(names) else shown


def _settle(planned: plan.Plan, loaded: base.Base, model: Any, data: Encoded, emit: Emitter) -> base.Base:
    """The base with a setting that holds: packing was asked of this model, and found to work or given up."""
    settled, reason = packing.settle(planned, loaded, model, data)
    if reason is not None:
        emit(Notice(text=reason))
    return settled
