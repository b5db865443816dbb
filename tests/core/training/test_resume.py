"""N steps are k steps, a resumption and N-k steps, bit for bit: the loop itself, at every step and with every turn."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from tiny_loop import Emitter, build, equal, weights

from pefttool.api import events
from pefttool.api.errors import Interrupted
from pefttool.runs import checkpoint
from pefttool.setup import attach
from pefttool.training import checkpointing
from pefttool.training.loop import Loop


def tell(loop: Loop) -> list[Any]:
    """What the loop told of each step and evaluation, without seconds and memory."""
    emit: Any = loop.emit
    steps = [(e.step, e.loss, e.learning_rate, e.grad_norm, e.rows, e.tokens) for e in emit.of(events.StepDone)]
    return [*steps, *((e.step, e.metrics, e.best) for e in emit.of(events.Evaluated))]


def state(loop: Loop) -> list[Any]:
    """Of the optimiser and the random generators, at the end."""
    held = [value for values in loop.state.optimizer.state.values() for value in values.values()]
    return [*held, torch.get_rng_state(), loop.state.scheduler.get_last_lr(), random.getstate()]


def same(first: list[Any], second: list[Any]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(a.equal(b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


CASES: dict[str, dict[str, Any]] = {
    "packed": {"packed": True, "dropout": 0.3},
    "padded, accumulated": {"packed": False, "dropout": 0.3, "gradient_accumulation": 2},
    "filled by tokens": {"packed": True, "batch_tokens": 40},
    "8-bit optimiser": {"packed": True, "optimizer": "adamw_8bit"},
    "cosine, patience": {"packed": False, "scheduler": "cosine", "warmup": 3, "evaluate_every": 2, "patience": 2},
    "last, not best": {"packed": True, "keep_best": False},
}


@pytest.mark.parametrize("case", CASES)
def test_at_every_step(tmp_path: Path, case: str) -> None:
    options = {"epochs": 2, "evaluate_every": 3, "learning_rate": 0.1, "keep_checkpoints": 99, **CASES[case]}

    def start(folder: Path, **more: Any) -> Loop:
        loop = build(folder, **{**options, **more})
        torch.manual_seed(3)
        random.seed(3)
        return loop

    whole = start(tmp_path / "whole", checkpoint_every=1)
    expected = whole.run()
    ending = state(whole)
    checkpoints = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    assert len(checkpoints) == expected.steps >= 5
    for path in checkpoints:
        step = int(path.name.removeprefix("step-"))
        torch.manual_seed(step)
        resumed = build(tmp_path / path.name, **{**options, "resume": path})
        result = resumed.run()
        assert equal(weights(resumed), weights(whole)), path.name
        assert (result.steps, result.best_step, result.metrics) == (
            expected.steps,
            expected.best_step,
            expected.metrics,
        )
        assert result.reason == expected.reason
        assert tell(resumed) == [line for line in tell(whole) if line[0] > step]
        assert same(state(resumed), ending), path.name


@pytest.mark.parametrize("step", [2, 3, 4, 6])
def test_a_signal_loses_nothing(tmp_path: Path, step: int) -> None:
    """Before an evaluation that is due, too: it is made when the run goes on."""
    options: dict[str, Any] = {"packed": True, "dropout": 0.3, "evaluate_every": 3, "learning_rate": 0.1}
    whole = build(tmp_path / "whole", **options)
    torch.manual_seed(3)
    expected = whole.run()
    stopped = build(tmp_path / "run", **options)
    emit: Any = stopped.emit
    emit.after[step] = lambda: stopped.heard.__setattr__("number", signal.SIGTERM)
    torch.manual_seed(3)
    with pytest.raises(Interrupted, match="SIGTERM after step"):
        stopped.run()
    (path,) = (tmp_path / "run" / "checkpoints").iterdir()
    resumed = build(tmp_path / "run", **options, resume=path)
    result = resumed.run()
    assert equal(weights(resumed), weights(whole))
    assert (result.best_step, result.metrics) == (expected.best_step, expected.metrics)
    assert tell(stopped) + tell(resumed) != []
    told = [line for line in (*tell(stopped), *tell(resumed))]
    assert sorted(map(repr, told)) == sorted(map(repr, tell(whole)))


def test_an_observer_that_stops_at_a_checkpoint_is_delivered_what_was_judged(tmp_path: Path) -> None:
    class Stops(Emitter):
        def __call__(self, event: Any) -> None:
            super().__call__(event)
            if isinstance(event, events.Saved):
                self.control.stop("time is up")

    loop = build(tmp_path, True, emit=Stops(), checkpoint_every=2, evaluate_every=99)
    result = loop.run()
    assert (result.steps, result.best_step, result.reason) == (2, 2, "stopped: time is up")
    assert result.metrics["loss"] > 0


@pytest.mark.parametrize("minutes", [10, None])
def test_the_last_step_is_kept_where_it_would_be_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: int | None
) -> None:
    """What comes after training (evaluation, writing the adapter) may fail or be interrupted."""
    monkeypatch.setattr(checkpointing, "WORTH", 0)
    whole = build(tmp_path, True, checkpoint_minutes=minutes)
    steps = whole.run().steps
    found = [path.name for path in tmp_path.glob("checkpoints/*")]
    assert found == ([f"step-{steps}"] if minutes else [])
    if minutes:
        resumed = build(tmp_path, True, resume=tmp_path / "checkpoints" / f"step-{steps}")
        assert resumed.run().steps == steps and equal(weights(resumed), weights(whole))


def test_going_on_below_one_that_is_of_no_use(tmp_path: Path) -> None:
    """Killed before step 4 was marked, gone on with from step 2, interrupted after step 3: that is the newest now."""
    build(tmp_path, True, checkpoint_every=2, max_steps=4, keep_checkpoints=9).run()
    (tmp_path / "checkpoints" / "step-4" / "COMPLETE").unlink()
    resumed = build(tmp_path, True, keep_checkpoints=1, resume=tmp_path / "checkpoints" / "step-2")
    emit: Any = resumed.emit
    emit.after[3] = lambda: resumed.heard.__setattr__("number", signal.SIGINT)
    with pytest.raises(Interrupted, match="Ctrl-C after step 3, with a checkpoint"):
        resumed.run()
    newest, skipped = checkpoint.newest(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "step-3" and skipped == ()


def test_halved_batches_stay_halved(tmp_path: Path) -> None:
    """What memory allowed is part of the state: the sums are taken in the same order."""
    options: dict[str, Any] = {"packed": True, "keep_checkpoints": 99}
    whole = build(tmp_path / "whole", **options, checkpoint_every=1)
    whole.state.halvings = 1
    whole.run()
    resumed = build(tmp_path / "run", **options, resume=tmp_path / "whole" / "checkpoints" / "step-3")
    resumed.run()
    assert resumed.state.halvings == 1 and equal(weights(resumed), weights(whole))


def test_statistics_of_training_come_back(tmp_path: Path) -> None:
    """A buffer that changes with every step, such as BatchNorm's, and what only the adapter knows."""

    def start(**more: Any) -> Loop:
        loop = build(tmp_path / "run", True, keep_checkpoints=99, checkpoint_every=1, **more)
        model, adapter = loop.state.adapted.model, loop.plan.adapter
        model.register_buffer("mean", torch.zeros(2))
        model.register_buffer("still", torch.ones(2))
        known: dict[str, Any] = {"ranks": torch.zeros(1), "log": []}

        def after_step(model: Any, step: int) -> None:
            known["ranks"] += known["ranks"] + step
            known["log"].append(step)
            model.mean += model.mean + numpy.random.rand()

        adapter.after_step = after_step  # type: ignore[method-assign]
        adapter.training_state = lambda model: known  # type: ignore[method-assign]
        adapter.restore_training_state = lambda model, state: known.update(state)  # type: ignore[method-assign]
        loop.state.adapted = replace(
            loop.state.adapted, buffers={n: b.clone() for n, b in attach.small_buffers(model).items()}
        )
        loop.known = known  # type: ignore[attr-defined]
        return loop

    numpy.random.seed(1)
    whole: Any = start()
    whole.run()
    resumed: Any = start(resume=tmp_path / "run" / "checkpoints" / "step-4")
    resumed.run()
    assert (
        resumed.state.adapted.model.mean.equal(whole.state.adapted.model.mean)
        and float(resumed.state.adapted.model.mean[0]) > 0
    )
    assert resumed.known["ranks"].equal(whole.known["ranks"]) and resumed.known["log"] == whole.known["log"]


def test_the_process_may_be_killed_by_a_real_signal(tmp_path: Path) -> None:
    loop = build(tmp_path / "run", True)
    emit: Any = loop.emit
    emit.after[2] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    from pefttool.training import interrupts

    with interrupts.raising(), pytest.raises(Interrupted), interrupts.waiting() as loop.heard:
        loop.run()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]
