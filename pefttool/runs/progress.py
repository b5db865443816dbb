"""What a run has reached, and what it needs to go on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pefttool.data.batches import Position

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Best:
    """The best evaluation so far; `value` is None before the first."""

    step: int = 0
    value: float | None = None
    since: int = 0


@dataclass(frozen=True)
class Watched:
    """What the watch over a run has seen, so that the watch judges at the same step after an interruption.

    updates    of parameters so far, and whether warm-up was over by then
    gradients  were judged; so were `parameters`
    reached    names of parameters that a gradient has reached, and of those that have moved: until they are judged
    alarm      what was wrong in the end
    """

    updates: int = 0
    warmed_up: bool = False
    gradients: bool = False
    parameters: bool = False
    reached: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    alarm: str | None = None


@dataclass(frozen=True)
class TrainingProgress:
    """Where a run stands between two steps.

    evaluated  the evaluation that is due at this step was made: a signal may come before it
    metrics    of the best evaluation
    halvings   how often micro-batches were halved for lack of memory
    skipped    steps in a row whose scaled gradients were not finite
    watched    what has been judged of the run by now, and what it was found to have wrong (watch.py)
    ended      why training has ended before the last step, if an observer asked for it: it does not go on
    rehearsed  rows and peak bytes of the longest batch (rehearsal.py), if there was a rehearsal that still holds
    """

    step: int
    position: Position
    best: Best
    evaluated: bool = True
    metrics: Mapping[str, float] = field(default_factory=dict)
    halvings: int = 0
    skipped: int = 0
    watched: Watched = field(default_factory=Watched)
    ended: str | None = None
    rehearsed: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Restorable:
    """What a checkpoint is taken of, and put back into: the objects themselves. `parameters` are those that train."""

    parameters: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler


@dataclass(frozen=True)
class Extras:
    """What else a checkpoint holds.

    best          parameters and changed buffers of the best evaluation, where they are not the present ones
    buffers       of the model, those that training changed
    adapter       the adapter's own state: nested mappings and lists of tensors and plain values
    best_adapter  the same at the best evaluation, where that is not the present one
    random        a generator's state for each rank
    identity      what the run depends on (resuming.py): plain values
    """

    best: Mapping[str, Tensor] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    adapter: Any = None
    best_adapter: Any = None
    random: Sequence[str] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)


#: Where a run has nothing beside its tensors.
NOTHING = Extras()


def watched(document: Mapping[str, Any]) -> Watched:
    """What a checkpoint says that was watched, as `read` gives the document; nothing where it cannot be understood."""
    try:
        given = document["progress"]["watched"].items()
        held: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given}
        return Watched(**held)
    except (TypeError, LookupError, AttributeError):
        return Watched()
