"""From the run to its observers: `events.jsonl` first, then every observer, each isolated from the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from pefttool.api.events import Control, Event, Notice
from pefttool.config.plugins import Plugin, Plugins
from pefttool.files import strict_json


class Emitter:
    """Call it with an event. On ranks other than 0 nothing is written and nobody is told."""

    def __init__(self, plugins: Plugins, rank: int = 0) -> None:
        self.control = Control()
        self.step = 0
        self._rank = rank
        self._observers: list[tuple[Plugin, Callable[..., Any]]] = [
            (plugin, implementation.function) for plugin, implementation in plugins.implementations("on_event")
        ]
        self._file: TextIOWrapper | None = None
        self._early: list[Event] = []
        self._failed = False
        self.folder: Path | None = None

    def open(self, path: Path) -> None:
        """From now on events go to this file; those that came before are written first."""
        if self._rank == 0:
            self.folder = path.parent
            if path.exists():
                trim(path)
            self._file = path.open("a", encoding="utf-8")
            early, self._early = self._early, []
            self._write("".join(line(event) for event in early))

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what a full disk kept from being written
                self._file.close()
            self._file = None

    def _write(self, lines: str) -> None:
        """A disk that is full must not end the run: from then on, events go to observers alone."""
        if self._file is None or self._failed:
            return
        try:
            self._file.write(lines)
            self._file.flush()
        except OSError as error:
            self._failed = True
            text = f"{self._file.name} cannot be written ({error.strerror}): the run goes on, unrecorded from here"
            self(Notice(text=text, level="warning"))

    def __call__(self, event: Event) -> None:
        if self._rank != 0:
            return
        event = replace(event, time=time.time(), monotonic=time.monotonic(), step=self.step, control=self.control)
        if self._file is None:
            self._early.append(event)
        else:
            self._write(line(event))
        failed: list[tuple[Plugin, BaseException]] = []
        for plugin, observe in self._observers:
            try:
                observe(event=event)
            except (Exception, SystemExit) as error:  # a stranger's observer must not end the run
                failed.append((plugin, error))
        self._disable(failed, event)

    def _disable(self, failed: Sequence[tuple[Plugin, BaseException]], event: Event) -> None:
        for plugin, error in failed:
            self._observers = [(p, f) for p, f in self._observers if p is not plugin]
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            text = (
                f"observer {plugin.name!r} ({plugin.owner}) failed on {type(event).__name__}: {reason}; it is disabled"
            )
            self(Notice(text=text, level="warning"))


def line(event: Event) -> str:
    """An event as a line of `events.jsonl`."""
    values = {f.name: getattr(event, f.name) for f in fields(event) if f.name != "control"}
    return strict_json.dumps({"type": type(event).__name__, **values}) + "\n"


def trim(path: Path) -> None:
    """Cut off a last line that a crash left unfinished."""
    with path.open("r+b") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)
