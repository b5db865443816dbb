"""The loop on a toy: what is delivered, when it stops, and that accumulation never changes the objective."""

import errno
import math
import os
import signal

import pytest
import torch
from line_loop import Whole, fit

from pefttool.api import events
from pefttool.api.errors import Interrupted, RunError
from pefttool.api.values import Row
from pefttool.config.settings import TrainSettings
from pefttool.files import durable
from pefttool.setup.attach import Adapted
from pefttool.training import checkpointing
from pefttool.training.optimisation import make_optimizer, make_schedule


def test_loss_falls_and_every_step_is_told(tmp_path):
    run = fit(tmp_path, epochs=20)
    steps = run.emit.of(events.StepDone)
    assert [e.step for e in steps] == list(range(1, 81)) == run.adapter.steps
    assert steps[-1].loss < 0.2 * steps[0].loss
    assert [type(e) for e in run.emit.seen if type(e).__name__.startswith("Train")] == [
        events.TrainStarted,
        events.TrainFinished,
    ]
    assert all(e.rows == 2 and e.memory > 0 and e.seconds > 0 for e in steps)


def test_the_best_evaluation_is_delivered(tmp_path):
    run = fit(tmp_path, held_out=[0.1, 0.9, 0.3], learning_rate=0.5)
    assert run.result.best_step == 8
    assert run.result.metrics["score"] == 0.9
    again = fit(tmp_path, held_out=[0.1, 0.9], learning_rate=0.5, max_steps=12, stop_at=8)
    assert torch.equal(run.model.weight, again.model.weight)
    assert run.emit.of(events.TrainFinished)[0].best_step == 8
    assert [e.best for e in run.emit.of(events.Evaluated)] == [True, True, False]


def test_what_is_no_number_is_never_the_best(tmp_path):
    nan = float("nan")
    run = fit(tmp_path, held_out=[nan, 0.3, 0.2, nan], epochs=4)
    assert run.result.best_step == 8 and run.result.metrics["score"] == 0.3
    told = [e.text for e in run.emit.of(events.Notice) if "no number" in e.text]
    assert [text.partition(":")[0] for text in told] == [
        "score of the held-out rows is no number after step 4",
        "score of the held-out rows is no number after step 16",
    ]
    assert fit(tmp_path, held_out=[nan, nan, nan]).result.best_step == 12  # then the last one


def test_without_keep_best_the_last_step_is_delivered(tmp_path):
    run = fit(tmp_path, held_out=[0.1, 0.9, 0.3], keep_best=False)
    assert run.result.best_step == 12 and run.result.metrics["score"] == 0.3


def test_patience_stops(tmp_path):
    run = fit(tmp_path, held_out=[0.5, 0.4, 0.3, 0.2], epochs=9, evaluate_every=2, patience=2)
    assert run.result.steps == 6 and run.result.best_step == 2
    assert "no better score in 2 evaluations" in run.result.reason


def test_an_observer_can_stop_at_the_step_boundary(tmp_path):
    run = fit(tmp_path, stop_at=3)
    assert run.result.steps == 3 and run.result.reason == "stopped: enough"
    assert len(run.emit.of(events.Evaluated)) == 1


@pytest.mark.parametrize("every", [1, 3, 5])
def test_evaluations_come_every_n_steps_and_at_the_end(tmp_path, every):
    run = fit(tmp_path, evaluate_every=every)
    assert [e.step for e in run.emit.of(events.Evaluated)] == sorted({*range(every, 13, every), 12})


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (4, 2), (2, 4), (1, 8), (3, 3)])
def test_accumulation_never_changes_the_objective(tmp_path, batch_size, accumulation):
    """Weighted rows: a mean of means would differ."""
    whole = fit(tmp_path, batch_size=8, epochs=5, optimizer="sgd")
    split = fit(tmp_path, batch_size=batch_size, gradient_accumulation=accumulation, epochs=5, optimizer="sgd")
    assert torch.allclose(whole.model.weight, split.model.weight, rtol=1e-6)
    assert torch.allclose(whole.model.bias, split.model.bias, rtol=1e-6)
    for a, b in zip(whole.emit.of(events.StepDone), split.emit.of(events.StepDone), strict=True):
        assert math.isclose(a.loss, b.loss, rel_tol=1e-5)


def test_gradients_are_clipped(tmp_path):
    run = fit(tmp_path, optimizer="sgd", learning_rate=1.0, max_grad_norm=1e-3, max_steps=1, scheduler="constant")
    torch.manual_seed(0)
    start = torch.nn.Linear(1, 1)
    moved = math.hypot(float((run.model.weight - start.weight).detach()), float((run.model.bias - start.bias).detach()))
    assert run.emit.of(events.StepDone)[0].grad_norm > 1e-2
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_the_first_loss_that_is_not_finite_stops_the_run(tmp_path):
    rows = [Row({"x": float("nan"), "y": 1, "n": 1})]
    for rehearse, where in ((True, "rehearsal"), (False, "step 1")):
        with pytest.raises(RunError, match=rf"{where}: the loss is not finite .* lower train\.learning_rate"):
            fit(tmp_path, rows=rows, rehearse=rehearse)


def test_checkpoints_every_n_steps(tmp_path):
    fit(tmp_path, checkpoint_every=5)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-10", "step-5"]


@pytest.mark.parametrize(
    ("scheduler", "warmup", "expected"),
    [
        ("linear", 0.25, [0.0, 0.5, 1.0, 5 / 6, 4 / 6]),
        ("linear", 2, [0.0, 0.5, 1.0, 5 / 6, 4 / 6]),
        ("constant", 0.25, [0.0, 0.5, 1.0, 1.0, 1.0]),
        ("cosine", 0, [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(5)]),
    ],
)
def test_schedules(scheduler, warmup, expected):
    settings = TrainSettings(scheduler=scheduler, warmup=warmup, learning_rate=1.0)
    model = torch.nn.Linear(1, 1)
    optimizer = make_optimizer(Adapted(model, ("weight", "bias"), (), True), Whole(), settings)
    schedule = make_schedule(optimizer, settings, 8)
    rates = []
    for _ in expected:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 7), (3, 7), (7, 7), (1, 1)])
def test_schedules_are_those_of_transformers(scheduler, warmup, steps):
    from transformers import get_scheduler

    def rates(make):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        schedule, found = make(optimizer), []
        for _ in range(steps + 2):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    name = "constant_with_warmup" if scheduler == "constant" else scheduler
    settings = TrainSettings(scheduler=scheduler, warmup=float(warmup))
    theirs = rates(lambda o: get_scheduler(name, o, num_warmup_steps=warmup, num_training_steps=steps))
    ours = rates(lambda o: make_schedule(o, settings, steps))
    assert ours[:steps] == pytest.approx(theirs[:steps], abs=1e-12)


def test_decay_spares_biases_and_heads_have_their_own_rate():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    settings = TrainSettings(weight_decay=0.1, learning_rate=1e-3, head_learning_rate=5e-3)
    adapted = Adapted(model, ("0.weight", "0.bias"), ("1.weight", "1.bias"), True)
    groups = make_optimizer(adapted, Whole(), settings).param_groups
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    wanted = {"0.weight": (1e-3, 0.1), "0.bias": (1e-3, 0.0), "1.weight": (5e-3, 0.1), "1.bias": (5e-3, 0.0)}
    assert {n: found[id(p)] for n, p in model.named_parameters()} == wanted


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_the_first_signal_ends_with_a_checkpoint_and_the_second_at_once(tmp_path, number, name, code):
    def twice():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)

    def handler(number, frame):
        raise KeyboardInterrupt

    inherited = signal.signal(number, handler)
    try:
        with pytest.raises(Interrupted, match=f"{name} after step 3, with a checkpoint: go on with `pefttool") as found:
            fit(tmp_path, at_step={3: lambda: os.kill(os.getpid(), number)})
        assert found.value.exit_code == code
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-3"]
        assert signal.getsignal(number) is handler
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "other", at_step={2: twice})
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, inherited)


def test_checkpoints_by_the_clock(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: now[0])

    def later():
        now[0] += 50

    saved = fit(tmp_path, checkpoint_minutes=2, keep_checkpoints=9, at_step={i: later for i in range(1, 13)})
    assert [e.step for e in saved.emit.of(events.Saved)] == [4, 8, 12]
    assert not fit(tmp_path / "b", checkpoint_minutes=None, at_step={3: later}).emit.of(events.Saved)


def test_a_disk_that_is_full_ends_no_run(tmp_path, monkeypatch):
    write, calls = durable.write, []

    def full(path, content):
        calls.append(path)
        if "step-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(durable, "write", full)
    run = fit(tmp_path, checkpoint_every=2, keep_checkpoints=9)
    (notice,) = [e.text for e in run.emit.of(events.Notice) if "checkpoint" in e.text]
    assert notice.startswith("the checkpoint of step 4 cannot be written (No space left on device): the run goes on")
    assert notice.endswith("its newest checkpoint: step 2")
    found = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert found == ["step-10", "step-12", "step-2", "step-6", "step-8"] and run.result.steps == 12
