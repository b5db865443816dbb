"""The picture of the system: the eight stages, called in order, and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pefttool import (
    artefacts,
    attach,
    base,
    batches,
    budget,
    comparison,
    corpus,
    evaluate,
    features,
    forecast,
    interrupts,
    packing,
    plan,
    reference,
    resuming,
    run_folder,
    saved_files,
    sizes,
    store,
    techniques,
    train,
    verdict,
    witness,
)
from pefttool.batches import Encoded
from pefttool.errors import Interrupted, PefttoolError
from pefttool.events import DataReady, Notice, Progress, RunFinished, RunStarted
from pefttool.observers import Emitter
from pefttool.recipe import Recipe
from pefttool.registry import Registry
from pefttool.resuming import Resume
from pefttool.store import Store


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
    if loaded.missing:
        lacking = f"{loaded.local.path} lacks {len(loaded.missing)} weights of {loaded.facts.architecture}"
        text = f"{lacking}, such as {loaded.missing[0]}: they start at random, and stay so where nothing trains them"
        emit(Notice(text=text, level="warning"))
    cache = kept if planned.recipe.data.cache else None
    data, held_out = _encode(planned, loaded, rows, cache, emit)

    moment = comparison.moment(planned.adapter)
    if moment == "loaded":
        loaded = _settle(planned, loaded, loaded.model, data, emit)
        before, shown = comparison.look(planned, loaded, loaded.model, held_out, emit)
    adapted = attach.attach(loaded.model, planned.adapter, planned.recipe.adapter_options, loaded.facts)
    moment = comparison.later(moment, adapted)
    techniques.apply(planned, adapted)
    if moment != "loaded" or loaded.setting.packing:  # not by luck of the base alone: the adapter may mix rows
        loaded = _settle(planned, loaded, adapted.model, data, emit)
    ranks = accelerator.num_processes
    adapted, data, held_out = features.settle(planned, loaded, adapted, data, held_out, cache, emit, ranks)
    if moment == "attached":
        before, shown = comparison.look(planned, loaded, adapted.model, held_out, emit)

    untrained = attach.head_values(adapted)
    start = None if resume is None else resume.checkpoint
    result = train.train(planned, loaded, adapted, data, held_out, emit, accelerator, folder, identity, start)
    trained = witness.hear(planned, loaded, adapted, held_out) if writes else None
    adapter = artefacts.save_adapter(folder, planned, loaded, adapted) if writes else folder / run_folder.ADAPTER

    after = comparison.answers(planned, loaded, adapted.model, held_out)
    judged = comparison.delivered(planned, loaded, adapted.model, held_out, result.metrics, emit)
    if moment == "trained":
        with attach.without(adapted, planned.adapter, untrained):
            before, shown = comparison.look(planned, loaded, adapted.model, held_out, emit)
    samples = tuple(
        {"row": dict(r.values), "before": b, "after": a} for r, b, a in zip(held_out.rows, shown, after, strict=False)
    )
    improved = verdict.tell(before, judged, *planned.task.judge(loaded.setting), emit)
    if writes:
        artefacts.write_metrics(
            folder,
            before,
            judged,
            samples,
            improved=improved,
            data_sha256=rows.sha256,
            steps=result.steps,
            best_step=result.best_step,
            reason=result.reason,
            memory=forecast.compare(planned, loaded.setting, data, result.rehearsed, emit),
        )
        saved_files.report(adapter, adapted, planned.recipe.check, emit)
    accelerator.wait_for_everyone()
    emit(RunFinished(before=before, after=judged, samples=samples, adapter=str(adapter)))
    talks, takes_text = (ask(planned.task, loaded.setting.options) for ask in (evaluate.talks, evaluate.takes_text))
    return Finished(folder, adapter, before, judged, samples, talks, takes_text, writes, improved, trained)


def _open(folder: Path, planned: plan.Plan, resume: Resume | None, processes: int, emit: Emitter) -> None:
    """Once the folder is locked: is it still what it was taken for?"""
    if resume is not None:
        resuming.require_newest(resume)
    elif artefacts.open_folder(folder, planned, processes):
        emit(Notice(text=f"{folder}: an unfinished run without a checkpoint was there: started over"))
    emit.open(folder / run_folder.EVENTS)


def _notices(emit: Emitter, texts: tuple[str, ...]) -> None:
    for text in texts:
        warns = text.startswith("warning: ")
        emit(Notice(text=text.removeprefix("warning: "), level="warning" if warns else "info"))


def _encode(
    planned: plan.Plan, loaded: base.Base, rows: corpus.Corpus, cache: Store | None, emit: Emitter
) -> tuple[Encoded, Encoded]:
    def progress(done: int, total: int) -> None:
        emit(Progress(what="encoding", done=done, total=total))

    def asked(done: int, total: int) -> None:
        emit(Progress(what="the base's answers", done=done, total=total))

    processor, setting = loaded.processor, loaded.setting
    data, held_out = (
        batches.encode(
            part, planned.task, processor, setting, told, cache, batches.rows_key(planned, processor, setting, part)
        )
        for part, told in ((rows.train, progress), (rows.eval, None))
    )
    if reference.asks(planned.task):
        data, held_out = (reference.settle(planned, loaded, part, cache, asked) for part in (data, held_out))
    for part, which, purpose in ((data, "training rows", "train"), (held_out, "held-out rows", "judge by")):
        if part.dropped:
            emit(Notice(text=batches.left_out(part, which, purpose, setting), level="warning"))
    doubt = planned.task.doubt(held_out.examples, setting)
    if doubt is not None:
        emit(Notice(text=doubt, level="warning"))
    emit(
        DataReady(
            train_rows=len(data.examples),
            eval_rows=len(held_out.examples),
            trained_tokens=data.trained,
            tokens=data.tokens,
            truncated_rows=data.truncated,
            preview=planned.task.preview(data.examples[0], loaded.processor),
        )
    )
    return data, held_out


def _settle(planned: plan.Plan, loaded: base.Base, model: Any, data: Encoded, emit: Emitter) -> base.Base:
    """The base with a setting that holds: packing was asked of this model, and found to work or given up."""
    settled, reason = packing.settle(planned, loaded, model, data)
    if reason is not None:
        emit(Notice(text=reason))
    return settled
