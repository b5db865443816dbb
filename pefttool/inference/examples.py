"""Stage 4: rows -> encoded rows, with what the base says of them, and everything that the user should know of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttool.api.events import DataReady, Progress
from pefttool.api.values import DataProblem
from pefttool.data import encoding
from pefttool.data.corpus import Corpus
from pefttool.data.encoding import Encoded, Examples
from pefttool.inference import reference_model
from pefttool.models import vocabulary
from pefttool.setup.base import Base
from pefttool.setup.plan import Plan
from pefttool.setup.prepared import Session

if TYPE_CHECKING:
    from pefttool.files.store import Store


def encode(
    plan: Plan,
    base: Base,
    rows: Corpus,
    store: Store | None,
    session: Session,
    bad_rows: Callable[[Sequence[DataProblem], int], None],
) -> Examples:
    """The training rows and the held-out rows, encoded; `store` keeps them, `bad_rows` is told of those left out.

    Raises DataError for rows that cannot be used, unless `bad_rows` allows it.
    """
    task, processor, setting = plan.task, base.processor, base.setting

    def encoded(part: Sequence[Any], progress: Callable[[int, int], None] | None) -> Encoded:
        key = encoding.rows_key(task, plan.registry, plan.model.path, processor, setting, part)
        telling, kept = encoding.Telling(progress, bad_rows), encoding.Cached(store, key)
        found = encoding.encode(part, task, processor, setting, telling, kept)
        vocabulary.check(base.model, processor, found.examples, found.rows)
        return found

    def done_of(what: str) -> Callable[[int, int], None]:
        return lambda done, total: session.emit(Progress(what=what, done=done, total=total))

    data = Examples(encoded(rows.train, done_of("encoding")), encoded(rows.eval, None))
    if reference_model.asks(task):
        asked = done_of("the base's answers")
        data = Examples(
            *(reference_model.settle(plan, base, part, store, asked) for part in (data.train, data.held_out))
        )
    for part, which, purpose in (
        (data.train, "training rows", "train"),
        (data.held_out, "held-out rows", "judge by"),
    ):
        if part.dropped:
            session.warn(encoding.left_out(part, which, purpose))
    session.tell(task.noted(data.train.examples, data.held_out.examples, setting))
    session.emit(
        DataReady(
            train_rows=len(data.train.examples),
            eval_rows=len(data.held_out.examples),
            trained_tokens=data.train.trained,
            tokens=data.train.tokens,
            truncated_rows=data.train.truncated,
            preview=_preview(plan, base, data.train.examples[0]),
        )
    )
    return data


def _preview(plan: Plan, base: Base, example: Mapping[str, Any]) -> str:
    """A row as the model sees it, its class by name, too: what is encoded has the number alone."""
    shown, label, names = plan.task.preview(example, base.processor), example.get("label"), base.setting.labels
    return f"{shown} ({names[label]})" if shown and isinstance(label, int) and label < len(names) else shown
