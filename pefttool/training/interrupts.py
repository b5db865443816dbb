"""Ctrl-C and SIGTERM: a run ends between two steps with a checkpoint, and says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Raised(KeyboardInterrupt):
    """What SIGTERM and Ctrl-C raise wherever there is nothing to wait for."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Heard:
    """The first signal within `waiting`: None so far."""

    number: int | None = None

    @property
    def name(self) -> str:
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number or 0).name


@contextmanager
def raising() -> Iterator[None]:
    """Either signal raises `Raised` at once."""

    def stop(number: int, frame: Any) -> None:
        raise Raised(number)

    with _handled(stop):
        yield


@contextmanager
def waiting() -> Iterator[Heard]:
    """The first signal is only noted, so that the step can be finished; a second one does what it did before."""
    heard, before = Heard(), {number: signal.getsignal(number) for number in NUMBERS}

    def note(number: int, frame: Any) -> None:
        heard.number = number
        for each, old in before.items():
            signal.signal(each, old)

    with _handled(note):
        yield heard


@contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Only the main thread may say what signals do; elsewhere they keep doing what they did."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in NUMBERS}
    try:
        yield
    finally:
        for number, old in before.items():
            if old is not None:  # None: not Python's, and not to be had back
                signal.signal(number, old)
