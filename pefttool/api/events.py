"""What a run tells its observers. The core writes each event to `events.jsonl` before any observer sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Control:
    """Lets an observer end the run: honoured at the next step boundary."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def stop(self, reason: str) -> None:
        self.reason = self.reason or reason


@dataclass(frozen=True, kw_only=True)
class Event:
    """`time` is Unix seconds, `monotonic` seconds of a clock that never goes back, `step` optimiser steps so far."""

    time: float = 0.0
    monotonic: float = 0.0
    step: int = 0
    control: Control = field(default_factory=Control, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """The plan holds and the run folder exists."""

    folder: str
    adapter: str
    task: str
    model: str


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """One line that the user should read: a choice that was made for them and why, or a warning."""

    text: str
    level: str = "info"


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """Work outside the training loop: `done` of `total` (0: unknown) of the work called `what`."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class DataReady(Event):
    """Rows are encoded. `preview` shows one of them with its trained tokens marked."""

    train_rows: int
    eval_rows: int
    trained_tokens: int
    tokens: int
    truncated_rows: int
    preview: str


@dataclass(frozen=True, kw_only=True)
class TrainStarted(Event):
    total_steps: int
    trainable_parameters: int
    parameters: int
    world_size: int


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """The run goes on from `checkpoint`, taken after `step`: later steps that were recorded before are done again."""

    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """`loss` is the mean over the step's units, `learning_rate` of the first group, `memory` bytes of the process
    (or allocated on the device), `seconds` of this step."""

    loss: float
    learning_rate: float
    grad_norm: float
    epoch: float
    rows: int
    tokens: int
    seconds: float
    memory: int


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """Held-out metrics; `best` says that no earlier evaluation of this run was better in `primary`."""

    metrics: Mapping[str, float]
    primary: str
    best: bool


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    path: str
    what: str


@dataclass(frozen=True, kw_only=True)
class TrainFinished(Event):
    """`best_step` is the step whose adapter is delivered."""

    reason: str
    best_step: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """`before` and `after` are held-out metrics; `samples` are rows with the answers before and after."""

    before: Mapping[str, float]
    after: Mapping[str, float]
    samples: tuple[Mapping[str, Any], ...]
    adapter: str
