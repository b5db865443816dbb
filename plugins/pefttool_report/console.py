"""The terminal's view of a run, on standard error: standard output is left to results."""

from __future__ import annotations

from functools import singledispatchmethod
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pefttool import events

#: Where there is no terminal, a line is printed at every tenth of the run.
LINES = 10


class Reporter:
    """One for the process; a new run starts it afresh."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total = 0
        self._steps = 0
        self._tokens = 0
        self._seconds = 0.0

    @singledispatchmethod
    def on_event(self, event: Any) -> None:
        """Events that have nothing to show are passed over."""

    @on_event.register
    def _(self, event: events.RunStarted) -> None:
        self.__init__()  # type: ignore[misc]
        self._console.print(
            f"[bold]{event.adapter}[/] · {event.task} · {_plain(event.model)} -> {_plain(event.folder)}"
        )

    @on_event.register
    def _(self, event: events.Notice) -> None:
        if event.level == "error":
            self._close()  # the command line prints the error itself
            return
        mark = "[yellow]warning:[/] " if event.level == "warning" else "· "
        self._console.print(f"{mark}{_plain(event.text)}")

    @on_event.register
    def _(self, event: events.Progress) -> None:
        if event.total and event.done >= event.total and event.total >= 1000:
            self._console.print(f"· {_plain(event.what)}: {event.done:,} done")

    @on_event.register
    def _(self, event: events.DataReady) -> None:
        self._console.print(
            f"· {event.train_rows:,} training rows, {event.eval_rows:,} held out; {event.tokens:,} tokens"
            f"{_trained(event)}; {event.truncated_rows:,} rows truncated"
        )
        if event.preview:
            self._console.print(
                f"· first row as the model sees it (trained between « »):\n[dim]{_plain(event.preview.strip())}[/]"
            )

    @on_event.register
    def _(self, event: events.TrainStarted) -> None:
        self._total = event.total_steps
        share = event.trainable_parameters / max(1, event.parameters)
        self._console.print(
            f"· {event.trainable_parameters:,} of {event.parameters:,} parameters train ({share:.2%});"
            f" {event.total_steps} steps"
        )
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=None),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=event.total_steps)
            self._bar.start()

    @on_event.register
    def _(self, event: events.Resumed) -> None:
        self._console.print(f"· goes on after step {event.step} ({_plain(event.checkpoint)})")

    @on_event.register
    def _(self, event: events.StepDone) -> None:
        self._steps += 1
        self._tokens += event.tokens
        self._seconds += event.seconds
        speed = self._tokens / max(self._seconds, 1e-9)
        text = f"loss {event.loss:.3f} · {speed:,.0f} tokens/s · {event.memory / 2**30:.2f} GiB"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=event.step, description=text)
        elif event.step % max(1, self._total // LINES) == 0:
            left = (self._total - event.step) * self._seconds / max(1, self._steps)
            self._console.print(f"step {event.step}/{self._total} · {text} · {left:.0f} s left")

    @on_event.register
    def _(self, event: events.Evaluated) -> None:
        shown = " · ".join(f"{name} {value:.4f}" for name, value in event.metrics.items())
        self._console.print(f"held out after step {event.step}: {shown}{' (best so far)' if event.best else ''}")

    @on_event.register
    def _(self, event: events.TrainFinished) -> None:
        self._close()
        self._console.print(
            f"· training took {event.seconds:.0f} s: {_plain(event.reason)}; delivered: step {event.best_step}"
        )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _trained(event: events.DataReady) -> str:
    """How much of the rows is learnt; nothing where that is one label each, and no token at all."""
    if event.trained_tokens <= event.train_rows:
        return ""
    share = event.trained_tokens / max(1, event.tokens)
    # A window of a series is a few tokens, and the values to forecast are many.
    return f", {share:.0%} of them trained" if share <= 1 else f", {event.trained_tokens:,} values to learn"


def _plain(text: str) -> str:
    """Text from data or paths is shown as it is, never read as markup."""
    return text.replace("[", r"\[")


reporter = Reporter()
