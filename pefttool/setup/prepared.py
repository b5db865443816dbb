"""What a run works with once everything is there: it travels as one value, and so does the place where the run is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pefttool.api.events import Notice
from pefttool.api.values import Caution
from pefttool.config.emitter import Emitter
from pefttool.data.encoding import Examples
from pefttool.setup.attach import Adapted
from pefttool.setup.base import Base
from pefttool.setup.plan import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Prepared:
    """The plan, the base, the adapter on it, and the encoded rows: everything that training needs."""

    plan: Plan
    base: Base
    adapted: Adapted
    data: Examples


@dataclass(frozen=True)
class Session:
    """Where a run takes place: its folder, its observers, and its processes."""

    folder: Path
    emit: Emitter
    accelerator: Accelerator

    @property
    def ranks(self) -> int:
        """How many processes train together."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """The number of this process among them."""
        return int(self.accelerator.process_index)

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files."""
        return bool(self.accelerator.is_main_process)

    def say(self, text: str) -> None:
        """Tell the user in a line."""
        self.emit(Notice(text=text))

    def tell(self, texts: Iterable[str]) -> None:
        """Say each of these, and warn where it is a Caution."""
        for text in texts:
            if isinstance(text, Caution):
                self.warn(text)
            else:
                self.say(text)

    def warn(self, text: str) -> None:
        """Warn the user in a line."""
        self.emit(Notice(text=text, level="warning"))
