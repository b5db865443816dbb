"""After the last step: what a run leaves behind, in steps that survive each other. What failed is done by `resume`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pefttool.api.errors import PefttoolError, RunError
from pefttool.api.events import Notice
from pefttool.config.emitter import Emitter
from pefttool.config.plugins import one_line
from pefttool.files import fingerprint
from pefttool.inference import prompts, verdict, witness, witness_file
from pefttool.inference.before_after import Comparison, Seen
from pefttool.inference.witness import Witness
from pefttool.runs import artefacts, model_card, run_folder, saved_files
from pefttool.setup.prepared import Prepared, Session
from pefttool.training.loop import Result
from pefttool.training.state import Rehearsed

if TYPE_CHECKING:
    pass

Made = TypeVar("Made")


@dataclass(frozen=True)
class Finished:
    """What a run brought: `before` and `after` are held-out metrics, `samples` rows with the answers before and after.

    improved      the metric that judges is better than before, or as good with a lower loss
    trained       what the trained model answered, for whoever loads the adapter again
    talks         `pefttool chat` can be had with the adapter; `takes_text`: `pefttool predict --text`
    main_process  this process is the one that tells the user
    error         what failed, what was kept and what to do; None where nothing failed
    """

    folder: Path
    adapter: Path
    before: Mapping[str, float]
    after: Mapping[str, float]
    samples: tuple[Mapping[str, Any], ...]
    improved: bool = True
    trained: Witness | None = None
    talks: bool = False
    takes_text: bool = False
    main_process: bool = True
    error: RunError | None = None


@dataclass
class Steps:
    """Each is tried, whatever became of the others; `keep` is called once, when the first has failed."""

    emit: Emitter
    keep: Callable[[], bool]
    failed: dict[str, Exception] = field(default_factory=dict)
    kept: bool = False

    def take(self, what: str, step: Callable[[], Made], otherwise: Made) -> Made:
        """What `step` returns, or `otherwise` where it fails. A signal ends them all, once training is kept."""
        try:
            return step()
        except Exception as error:
            self._keep()
            self.failed[what] = error
            self.emit(Notice(text=f"{what}: {reason(error)}", level="error"))
            return otherwise
        except BaseException:
            self._keep()
            raise

    def _keep(self) -> None:
        if self.failed or self.kept:
            return
        try:
            self.kept = self.keep()
        except Exception as error:
            self.emit(Notice(text=f"no checkpoint can be written: {reason(error)}", level="error"))

    @property
    def reasons(self) -> dict[str, str]:
        return {what: reason(error) for what, error in self.failed.items()}


def finish(
    prepared: Prepared,
    session: Session,
    result: Result,
    comparison: Comparison,
    memory_of: Callable[[Rehearsed | None], dict[str, int]],
    data_sha256: str,
) -> Finished:
    """Everything between the last step and the end of a run; files are written by one rank alone.

    `memory_of` compares the rehearsal's memory with the plan's, `data_sha256` is the hash of the run's data.
    """
    plan, base, emit, folder = prepared.plan, prepared.base, session.emit, session.folder
    steps = Steps(emit, result.keep if session.writes else lambda: True)
    target = folder / run_folder.ADAPTER
    trained = None
    if session.writes:
        trained = steps.take("what the check compares with", lambda: _hear(prepared, folder), None)
        steps.take("the adapter", lambda: artefacts.save_adapter(folder, plan, base, prepared.adapted), target)
        if "the adapter" not in steps.failed:
            check = plan.recipe.check
            steps.take("the saved files", lambda: saved_files.report(target, prepared.adapted, check, emit), None)
    nothing: list[Any] = []
    answers = steps.take("answers", lambda: comparison.answers(prepared), nothing)
    after = steps.take("held-out metrics", lambda: comparison.delivered(prepared, result.metrics), result.metrics)
    before = steps.take("the comparison with the base", lambda: comparison.before(prepared), Seen())
    metrics = before.metrics
    improved = not metrics or verdict.tell(metrics, after, *plan.task.judge(base.setting), emit)
    pairs = zip(prepared.data.held_out.rows, before.answers, answers, strict=False)
    samples = tuple({"row": dict(row.values), "before": first, "after": then} for row, first, then in pairs)
    if session.writes:
        memory = steps.take("memory", lambda: memory_of(result.rehearsed), dict[str, int]())
        known = {"steps": result.steps, "best_step": result.best_step, "reason": result.reason, "memory": memory}
        known |= {"improved": improved} if metrics else {}
        if "the adapter" not in steps.failed:
            facts = {"steps": result.steps, "best_step": result.best_step, "data": data_sha256}
            weights = fingerprint.weight_files(base.local.path)
            model = prepared.adapted.model
            steps.take(
                "the model card",
                lambda: model_card.write(target, plan, base, model, metrics, after, weights=weights, **facts),
                None,
            )
        steps.take(
            "metrics",
            lambda: artefacts.write_metrics(
                folder, metrics, after, samples, steps.reasons, data_sha256=data_sha256, **known
            ),
            None,
        )
    options = base.setting.options
    return Finished(
        folder=folder,
        adapter=target,
        before=metrics,
        after=after,
        samples=samples,
        improved=improved,
        trained=trained,
        talks=prompts.talks(plan.task, options),
        takes_text=prompts.takes_text(plan.task, options),
        main_process=session.writes,
        error=_error(folder, steps) if steps.failed else None,
    )


def _hear(prepared: Prepared, folder: Path) -> Witness | None:
    """The trained model's answers, which wait in the run's folder, too: the check may be another process's."""
    trained = witness.hear(prepared)
    witness_file.keep(run_folder.witness(folder), trained, prepared.plan.choice.device)
    return trained


def _error(folder: Path, steps: Steps) -> RunError:
    """One line: what failed and why, what is there, and how the rest is had."""
    failed = "; ".join(f"{what} failed ({why})" for what, why in steps.reasons.items())
    saved = not {"the adapter", "the saved files"} & set(steps.failed)
    kept = [f"the adapter is in {folder / run_folder.ADAPTER}"] if saved else []
    kept += [] if "metrics" in steps.failed else [f"what is known in {folder / run_folder.METRICS}"]
    there = f"{' and '.join(kept)}; " if kept else ""
    way_on = run_folder.way_on(folder) + (", which does not train again" if steps.kept else "")
    error = RunError(f"training is done, but {failed}: {there}{way_on}")
    error.__cause__ = next(iter(steps.failed.values()))
    return error


def reason(error: BaseException) -> str:
    """Of pefttool's errors what they say; of others their name as well."""
    return " ".join(str(error).split()) if isinstance(error, PefttoolError) else one_line(error)
