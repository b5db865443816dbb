"""What `pefttool data check` finds out about data, without a model: everything that a run would say of it, and more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pefttool.api.errors import DataError
from pefttool.api.values import Caution, DataProblem, Row, told
from pefttool.config.recipe import Recipe
from pefttool.config.registry import Registry
from pefttool.data import corpus, rows
from pefttool.data.recognition import recognise_task


@dataclass(frozen=True)
class Survey:
    """
    task, reason    what a row means, and how that was told
    columns         of the first rows
    read            good rows in the files; `train` and `eval` are what a run would make of them
    classes         training rows with each class, where the task has classes
    first           the first training row
    notices         what a run would say of the data, warnings first
    problems        records and rows that cannot be used, in the files' order
    fault           what keeps a run from using the rest
    hint            options with which the task would take rows all of which it refuses
    """

    task: str
    reason: str
    columns: tuple[str, ...]
    read: int
    train: int
    eval: int
    classes: dict[str, int]
    first: dict[str, Any]
    notices: tuple[str, ...]
    problems: tuple[DataProblem, ...]
    fault: str | None = None
    hint: str | None = None

    @property
    def good(self) -> bool:
        """Whether a run would take the data as it is."""
        return not self.problems and self.fault is None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "notices": list(map(told, self.notices)), "good": self.good}


def survey(given: Recipe, registry: Registry) -> Survey:
    """Read, check and split the recipe's data. Raises DataError, or UsageError, where not even the task can be told."""
    recipe, reason = recognise_task(given, registry)
    assert recipe.task is not None
    task = registry.tasks[recipe.task]
    path = rows.resolve(str(recipe.data.train), registry)
    columns, sample = rows.peek(path, registry, recipe.data.format, recipe.data.format_options)
    found = corpus.read_all(recipe, registry)
    train: Sequence[Row] = ()
    held_out: Sequence[Row] = ()
    notices, fault = found.notices, None
    try:
        used = corpus.arrange(recipe, registry, found)
        train, held_out, notices = used.train, used.eval, used.notices
    except DataError as error:
        fault = str(error)
    classes = Counter(name for row in train for name in task.classes(row.values, found.options))
    return Survey(
        task=recipe.task,
        reason=reason,
        columns=tuple(columns),
        read=len(found.train) + len(found.eval or ()),
        train=len(train),
        eval=len(held_out),
        classes=dict(sorted(classes.items())),
        first=dict((train or sample)[0].values),
        notices=tuple(sorted(notices, key=lambda text: not isinstance(text, Caution))),
        problems=found.problems,
        fault=fault,
        hint=found.hint,
    )
