"""What the base itself makes of the rows, before anything trains: asked once for every row, and kept on disk.

Preference tuning compares the model with the one that it started from. The base's part of that never changes, so that
it is no second model beside the trained one, and no second pass at every step.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pefttool.api.task import Task
from pefttool.data.batches import by_length
from pefttool.data.encoding import Encoded
from pefttool.files import fingerprint
from pefttool.inference.out_of_memory import in_batches
from pefttool.inference.predictor import Predictor

if TYPE_CHECKING:
    from torch import Tensor

    from pefttool.files.store import Store
    from pefttool.setup.base import Base
    from pefttool.setup.plan import Plan


def asks(task: Task) -> bool:
    """Whether the task wants to know anything of the base."""
    return type(task).prepare is not Task.prepare


def settle(
    plan: Plan, base: Base, data: Encoded, store: Store | None, progress: Callable[[int, int], None] | None = None
) -> Encoded:
    """The rows with what the base, just loaded, says about them; with a `store` it is asked once for good."""
    if not asks(plan.task):
        return data
    key = None if store is None else _key(plan, base, data)
    known = store.load(key) if store is not None and key is not None else None
    if known is None:
        size = plan.recipe.train.batch_size
        known = ask(Predictor.of(plan, base), data.examples, size, progress)
        if store is not None and key is not None:
            store.save(key, known)
    return carrying(data, known)


def ask(
    predictor: Predictor,
    examples: Sequence[Mapping[str, Any]],
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Name -> one number a row, `[rows]` float64 on the CPU. A batch that does not fit in memory is halved."""
    import torch

    found: dict[str, Tensor] = {}
    done = 0

    def prepared(rows: Sequence[int]) -> Mapping[str, Tensor]:
        batch = predictor.batch([examples[i] for i in rows])
        return predictor.task.prepare(predictor.model, batch, predictor.setting)

    order = by_length([int(e["length"]) for e in examples], batch_size)
    with predictor.inference():
        for rows, answers in in_batches(predictor, examples, order, prepared, "the base's answers"):
            for name, values in answers.items():
                column = found.setdefault(name, torch.zeros(len(examples), dtype=torch.float64))
                column[rows] = values.cpu().double()  # on the CPU: Apple's GPUs have no float64
            done += len(rows)
            if progress is not None:
                progress(done, len(examples))
    return found


def carrying(data: Encoded, known: Mapping[str, Tensor]) -> Encoded:
    """The rows with these numbers, by name."""
    columns = {name: values.tolist() for name, values in known.items()}
    own = ({name: values[i] for name, values in columns.items()} for i in range(len(data.examples)))
    return replace(
        data,
        examples=tuple(ChainMap(values, e) for values, e in zip(own, data.examples, strict=True)),  # type: ignore[arg-type]
    )


def _key(plan: Plan, base: Base, data: Encoded) -> str | None:
    """A hash over everything that the base's answers depend on, or None where that has none."""
    import torch

    if data.key is None:
        return None
    choice, quantization = plan.choice, plan.quantization
    kind = torch.device(choice.device).type
    try:
        return fingerprint.key(
            what="reference",
            rows=data.key,
            count=len(data.examples),
            weights=fingerprint.weight_files(base.local.path),
            quantizer=quantization.described() if quantization else None,
            choice=[kind, choice.dtype, str(choice.autocast)],
            code=fingerprint.code([plan.task, *([quantization.quantizer] if quantization else [])]),
        )
    except (fingerprint.Unknowable, OSError):
        return None
