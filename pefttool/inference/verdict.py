"""What held-out metrics say: which evaluation is the best, whether the adapter beats its base, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pefttool.api.events import Notice
from pefttool.api.task import Direction
from pefttool.config.emitter import Emitter

#: What ties are broken by: every task's metrics have it, and lower is better.
LOSS = "loss"
#: Held-out rows below which one more or less that is right moves an accuracy by more than 5 points.
FEW = 20
#: The sentence for an adapter that did not improve on its base.
NO_BETTER = "on the held-out rows the adapter is no better than the model as it was"


def is_better(found: Mapping[str, float], best: Mapping[str, float] | None, name: str, direction: Direction) -> bool:
    """Whether `found` beats `best` (None: there is none yet) in the metric `name`; a tie goes to the lower loss.

    Anything is better than NaN. An evaluation that ties in both is not better: the earlier one stays.
    """
    if best is None or math.isnan(best[name]):
        return True
    value, known = found[name], best[name]
    if value == known:
        return found.get(LOSS, math.nan) < best.get(LOSS, math.nan)
    return value > known if direction == "max" else value < known  # NaN is neither


def improved(before: Mapping[str, float], after: Mapping[str, float], name: str, direction: Direction) -> bool:
    """Whether the metrics after training beat those before it. No number beats a number."""
    return not math.isnan(after[name]) and is_better(after, before, name, direction)


def tell(
    before: Mapping[str, float], after: Mapping[str, float], name: str, direction: Direction, emit: Emitter
) -> bool:
    """`improved`; where it is not, a warning says so."""
    found = improved(before, after, name, direction)
    if not found:
        figures = f"{name} {before[name]:.4f} before, {after[name]:.4f} after"
        emit(Notice(text=f"{NO_BETTER} ({figures})", level="warning"))
    return found


def few_rows(rows: int, evaluations: int) -> str | None:
    """What is said where so few held-out rows choose among `evaluations` checkpoints; None where they are enough."""
    if rows >= FEW or evaluations < 2:
        return None
    which = "1 held-out row chooses" if rows == 1 else f"{rows} held-out rows choose"
    return (
        f"{which} the best of {evaluations} evaluations: with so few, chance has a say; set more apart"
        " (data.eval_fraction, data.eval), and trust the figures less than they look"
    )
