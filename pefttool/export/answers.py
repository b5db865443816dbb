"""Asks models that come one after another the same rows. Their answers wait in files: one model fills the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pefttool.api.errors import ModelError
from pefttool.api.values import Row
from pefttool.data import encoding
from pefttool.export.reload import Opened, Reloaded
from pefttool.inference import agreement, recorded_calls
from pefttool.inference.out_of_memory import release
from pefttool.inference.recorded_calls import Call, Outputs, Spilled
from pefttool.inference.witness import ROUNDING
from pefttool.nn import added_positions

if TYPE_CHECKING:
    from torch import nn

#: Rows that are compared, unless the caller says how many.
ROWS = 16


class Judge:
    """`rows` gives the rows to ask, once the first model is loaded, unless there are `calls` that were recorded before.
    `classes`: its logits are of exclusive classes."""

    def __init__(
        self, folder: Path, rows: Callable[[Reloaded], Sequence[Row]], most: int = ROWS, calls: Sequence[Call] = ()
    ) -> None:
        self.folder = folder
        self.calls = calls
        self.classes = True
        self._rows, self._most = rows, most

    def ask(
        self,
        name: str,
        opened: Opened,
        quantized: bool = True,
        look: Callable[[Reloaded], object] = lambda loaded: None,
    ) -> tuple[Spilled, Spilled | None]:
        """(its answers, those of its base, where the adapter can be switched off). The model is gone afterwards.

        `look` is called while it is there.
        """
        choice, adapter = opened.choice, opened.adapter
        plain: list[Spilled] = []

        def before(model: nn.Module) -> None:
            plain.append(Spilled(self.folder, f"{name}-plain", recorded_calls.made(model, self.calls, choice)))

        known = self.calls and adapter is not None and adapter.switches_off
        loaded = opened.model(quantized, before if known else None)
        model = loaded.model
        self.classes = recorded_calls.exclusive(model)
        if not self.calls:
            self._record(loaded)
        answers = Spilled(self.folder, name, recorded_calls.made(model, self.calls, choice))
        base = None
        if adapter is not None and adapter.switches_off:
            with added_positions.disabled(adapter, model):
                base = Spilled(self.folder, f"{name}-base", recorded_calls.made(model, self.calls, choice))
            for own in plain:
                require_off(own, base, opened)
        look(loaded)
        del loaded, model
        release(choice.device)
        return answers, base

    def ask_base(self, name: str, opened: Opened) -> Spilled:
        """The answers of the base alone, with a new head where the task has one: as before the first step."""
        model = opened.base().model
        answers = Spilled(self.folder, name, recorded_calls.made(model, self.calls, opened.choice))
        del model
        release(opened.choice.device)
        return answers

    def _record(self, loaded: Reloaded) -> None:
        rows = self._rows(loaded)[: self._most]
        task, processor, setting = loaded.task, loaded.processor, loaded.setting
        # Rows that a run leaves out tell nothing of two models.
        telling = encoding.Telling(bad_rows=lambda problems, good: None)
        encoded = loaded.prepared(encoding.encode(rows, task, processor, setting, telling))
        self.calls = recorded_calls.calls(loaded, encoded.examples)


def require_off(plain: Iterable[Outputs], off: Iterable[Outputs], opened: Opened) -> None:
    """Raise ModelError where an adapter that is switched `off` does not answer as the `plain` base: what a run says of
    the model before training is what it answers then."""
    assert opened.adapter is not None
    found = agreement.compare(plain, off)
    if not found.typical <= ROUNDING[opened.choice.autocast or opened.choice.dtype]:
        raise ModelError(
            f"adapter {opened.adapter.name!r}: switched off, it does not answer as its base ({found}): the metrics"
            " before training are not the base's, and nothing else that is compared with it; mend its disabled()"
        )
