"""What plugins implement to bring data and models in: formats of files, and sources of both. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pefttool.api.options import Options
from pefttool.api.values import DataProblem, Row


class DataFormat(ABC):
    """Turns files into rows."""

    name: ClassVar[str]
    Options: ClassVar[type[Options]] = Options
    #: `sniff` recognises nothing: such files are another format's too (CSV), and this one has to be asked for.
    by_name_only: ClassVar[bool] = False
    #: Suffixes of files that another format recognises, and this one reads where it is asked for: where no task
    #: recognises such a file, an error names it.
    on_request: ClassVar[tuple[str, ...]] = ()
    #: Such files may be of a narrower format, too (JSON, text): where one recognises the file, it is that one's.
    general: ClassVar[bool] = False
    #: Suffixes of files that are one row each (pictures, recordings): beside tables they are what the tables refer to.
    item_suffixes: ClassVar[tuple[str, ...]] = ()

    def companions(self, path: Path) -> tuple[Path, ...]:
        """Files that are read together with this one (the other language of a text), and have no rows of their own."""
        return ()

    @abstractmethod
    def sniff(self, path: Path) -> str | None:
        """Why this file looks like this format's, in a few words, or None; may read the first few kilobytes."""

    @abstractmethod
    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        """The rows of one file, in order; a record that cannot be read comes as a DataProblem, in its place.

        A file that cannot be read at all raises DataError.
        """


class Source(ABC):
    """Turns `NAME:REFERENCE` into files on disk (built-in examples, a company's model store)."""

    name: ClassVar[str]

    def references(self) -> Mapping[str, str]:
        """The references this source knows, with one line about each; empty if they cannot be listed."""
        return {}

    @abstractmethod
    def model(self, reference: str) -> Path:
        """A folder with config.json and safetensors, made or fetched on first use; ModelError says how to get it."""

    @abstractmethod
    def data(self, reference: str) -> Path:
        """A data file, or a folder with train.* and eval.* files; DataError says how to get it."""
