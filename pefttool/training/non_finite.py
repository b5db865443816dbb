"""Steps whose loss or gradient is not finite: never applied; the run stops there, or goes on without, as is asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pefttool.api.errors import RunError
from pefttool.api.values import Row
from pefttool.training.optimisation import StepResult

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttool.config.settings import TrainSettings

#: float16 gradient scaling starts too high by design; this many skipped steps in a row mean something else is wrong.
MOST_SCALED_STEPS = 20
#: Steps in a row that may be left out: where more are not finite, it is not for their rows.
MOST_SKIPPED_STEPS = 3
#: Rows that a message names.
SHOWN = 3


class NonFinite:
    """What is done about them in one run. `tell` is given a line for the user."""

    def __init__(
        self, model: nn.Module, rows: Sequence[Row], settings: TrainSettings, rank: int, tell: Callable[[str], object]
    ) -> None:
        self.model, self.rows, self.settings, self.rank, self.tell = model, rows, settings, rank, tell
        self.in_a_row = 0
        self.statistics: list[tuple[Tensor, Tensor]] = []

    def begin(self) -> None:
        """Before a step: keep what its forward pass changes, and no optimiser takes back."""
        if self.settings.non_finite == "skip":
            self.statistics = [(buffer, buffer.clone()) for buffer in _statistics(self.model)]

    def judge(
        self, result: StepResult, name: str, batches: Sequence[Sequence[int]], ranks: int, scaled: bool
    ) -> StepResult:
        """`result`, if the run may go on after it. `batches` are the step's rows, over all ranks; `name` is the step's.

        Raises RunError that names the rows, or for too many in a row.
        """
        if not result.skipped and result.culprit is None:
            self.in_a_row = 0
            return result
        self.in_a_row += 1
        if scaled and result.culprit is None:
            if self.in_a_row > MOST_SCALED_STEPS:
                raise RunError(
                    f"{name}: {self.in_a_row} steps in a row had gradients that are not finite: lower"
                    " train.learning_rate"
                )
            return result
        what = "gradient" if math.isfinite(result.loss) and result.culprit is None else "loss"
        at = None if result.culprit is None else result.culprit * ranks + self.rank
        places = self._places([row for batch in batches for row in batch] if at is None else batches[at])
        text = (
            f"{name}: the {what} is not finite (loss {result.loss:g}, gradient norm {result.grad_norm:g}) with {places}"
        )
        if self.settings.non_finite == "stop" or not result.skipped:
            raise RunError(
                f"{text}: mend the rows, lower train.learning_rate, use -o dtype=float32, or leave such steps out with"
                " -o train.non_finite=skip"
            )
        if self.in_a_row > MOST_SKIPPED_STEPS:
            raise RunError(
                f"{text}, as in the {self.in_a_row - 1} steps before: lower train.learning_rate, or use"
                " -o dtype=float32"
            )
        for buffer, value in self.statistics:
            buffer.copy_(value)
        self.tell(f"{text}: this step is left out; parameters and optimiser are those of the last good step")
        return result

    def _places(self, rows: Sequence[int]) -> str:
        named = ", ".join(self.rows[row].place for row in rows[:SHOWN])
        more = f" and {len(rows) - SHOWN} more rows" if len(rows) > SHOWN else ""
        return f"{named}{more}"


def _statistics(model: nn.Module) -> list[Tensor]:
    """Buffers that follow the batches (of batch norms in training mode)."""
    return [
        buffer
        for module in model.modules()
        if module.training and getattr(module, "running_mean", None) is not None
        for buffer in module.buffers(recurse=False)
    ]
