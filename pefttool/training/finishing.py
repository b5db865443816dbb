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
from pefttool.data.batches import Encoded
from pefttool.files import fingerprint
from pefttool.inference import before_after, verdict, witness, witness_file
from pefttool.inference.witness import Witness
from pefttool.runs import artefacts, model_card, run_folder, saved_files
from pefttool.setup import attach
from pefttool.setup.attach import Adapted
from pefttool.setup.base import Base
from pefttool.setup.plan import Plan
from pefttool.training.loop import Result
from pefttool.training.rehearsal import Rehearsed

if TYPE_CHECKING:
    from torch import Tensor

Found = TypeVar("Found")


@dataclass(frozen=True)
class Brought:
    """What a run brought: `before` and `after` are held-out metrics, `samples` rows with the answers before and after.

    `improved` says whether the metric that judges is better than before, and `trained` what the trained model answered,
    for whoever loads it again. `error` says what failed, what was kept and what to do; None where nothing failed.
    """

    adapter: Path
    before: Mapping[str, float]
    after: Mapping[str, float]
    samples: tuple[Mapping[str, Any], ...]
    improved: bool
    trained: Witness | None
    error: RunError | None


@dataclass
class Steps:
    """Each is tried, whatever became of the others; `keep` is called once, when the first has failed."""

    emit: Emitter
    keep: Callable[[], bool]
    failed: dict[str, Exception] = field(default_factory=dict)
    kept: bool = False

    def take(self, what: str, step: Callable[[], Found], otherwise: Found) -> Found:
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
    folder: Path,
    plan: Plan,
    base: Base,
    adapted: Adapted,
    held_out: Encoded,
    result: Result,
    memory_of: Callable[[Rehearsed | None], dict[str, int]],
    seen: tuple[Mapping[str, float], list[Any]] | None,
    untrained: Mapping[str, Tensor],
    data_sha256: str,
    emit: Emitter,
    writes: bool,
) -> Brought:
    """Everything between the last step and the end of a run; files are written by the rank that `writes` alone.

    `seen` is what the base made of the held-out rows, if that is known by now; else it is asked with the adapter
    switched off and the `untrained` values in the task head.
    """
    steps = Steps(emit, result.keep if writes else lambda: True)
    target = folder / run_folder.ADAPTER

    def before() -> tuple[Mapping[str, float], list[Any]]:
        if seen is not None:
            return seen
        with attach.without(adapted, plan.adapter, untrained):
            return before_after.look(plan, base, adapted.model, held_out, emit)

    trained = None
    if writes:
        trained = steps.take("what the check compares with", lambda: _hear(folder, plan, base, adapted, held_out), None)
        steps.take("the adapter", lambda: artefacts.save_adapter(folder, plan, base, adapted), target)
        if "the adapter" not in steps.failed:
            steps.take("the saved files", lambda: saved_files.report(target, adapted, plan.recipe.check, emit), None)
    nothing: list[Any] = []
    unknown: tuple[Mapping[str, float], list[Any]] = ({}, nothing)
    answers = steps.take("answers", lambda: before_after.answers(plan, base, adapted.model, held_out), nothing)
    after = steps.take(
        "held-out metrics",
        lambda: before_after.delivered(plan, base, adapted.model, held_out, result.metrics, emit),
        result.metrics,
    )
    metrics, shown = steps.take("the comparison with the base", before, unknown)
    improved = not metrics or verdict.tell(metrics, after, *plan.task.judge(base.setting), emit)
    samples = tuple(
        {"row": dict(r.values), "before": b, "after": a} for r, b, a in zip(held_out.rows, shown, answers, strict=False)
    )
    if writes:
        memory = steps.take("memory", lambda: memory_of(result.rehearsed), dict[str, int]())
        known = {"steps": result.steps, "best_step": result.best_step, "reason": result.reason, "memory": memory}
        known |= {"improved": improved} if metrics else {}
        if "the adapter" not in steps.failed:
            facts = {"steps": result.steps, "best_step": result.best_step, "data": data_sha256}
            weights = fingerprint.weight_files(base.local.path)
            steps.take(
                "the model card",
                lambda: model_card.write(target, plan, base, adapted.model, metrics, after, weights=weights, **facts),
                None,
            )
        steps.take(
            "metrics",
            lambda: artefacts.write_metrics(
                folder, metrics, after, samples, steps.reasons, data_sha256=data_sha256, **known
            ),
            None,
        )
    error = _error(folder, steps) if steps.failed else None
    return Brought(target, metrics, after, samples, improved, trained, error)


def _hear(folder: Path, plan: Plan, base: Base, adapted: Adapted, held_out: Encoded) -> Witness | None:
    """The trained model's answers, which wait in the run's folder, too: the check may be another process's."""
    trained = witness.hear(plan, base, adapted, held_out)
    witness_file.keep(run_folder.witness(folder), trained, plan.choice.device)
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
