"""The optimisers: 8-bit ones of bitsandbytes on a CPU, their state on disk and in a simulation, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from allocations import peak_bytes
from torch._subclasses.fake_tensor import FakeTensorMode

from pefttool.api.adapter import Adapter
from pefttool.config.settings import TrainSettings
from pefttool.data.batches import Position
from pefttool.forecast.recorder import Recorder
from pefttool.runs import checkpoint
from pefttool.runs.progress import Best, Restorable, TrainingProgress
from pefttool.setup import devices
from pefttool.setup.attach import Adapted
from pefttool.training import optimisation
from pefttool.training.optimisation import make_optimizer

#: 8-bit state from 4,096 elements on: the first layer's; a block of 256 is cut short at its end.
SHAPES = (67, 71, 3)


class Plain(Adapter):
    """Has nothing to say about optimisers."""

    name = "plain"

    def attach(self, model: Any, options: Any, facts: Any) -> Any:
        raise NotImplementedError

    save = load = attach


def make(model: Any, name: str) -> Any:
    settings = TrainSettings(optimizer=name, learning_rate=1e-2, weight_decay=0.1)  # type: ignore[arg-type]
    names = tuple(n for n, _ in model.named_parameters())
    return make_optimizer(Adapted(model, names, (), True), Plain(), settings)


def build(name: str, seed: int = 0) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(SHAPES[0], SHAPES[1]), torch.nn.Dropout(0.5), torch.nn.Linear(SHAPES[1], SHAPES[2])
    )
    return model, make(model, name)


def tensors(optimizer: Any) -> list[torch.Tensor]:
    return [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]


def step(model: Any, optimizer: Any) -> float:
    loss = model(torch.randn(9, SHAPES[0])).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def saved(folder: Any, name: str, steps: int) -> tuple[Any, Any]:
    model, optimizer = build(name)
    for _ in range(steps):
        step(model, optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1.0)
    progress, scaler = TrainingProgress(steps, Position(), Best()), torch.amp.GradScaler("cpu", enabled=False)
    checkpoint.save(folder, progress, Restorable(dict(model.named_parameters()), optimizer, schedule, scaler))
    return model, optimizer


@pytest.mark.parametrize("name", ["adamw", "sgd", "adamw_8bit"])
def test_a_stored_state_goes_on_to_the_bit(tmp_path: Any, name: str) -> None:
    model, optimizer = saved(tmp_path, name, 3)
    expected = [step(model, optimizer) for _ in range(3)]
    other, resumed = build(name, seed=9)
    schedule = torch.optim.lr_scheduler.LambdaLR(resumed, lambda s: 1.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    checkpoint.load(tmp_path / "step-3", Restorable(dict(other.named_parameters()), resumed, schedule, scaler))
    assert [step(other, resumed) for _ in range(3)] == expected
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert a.equal(b)
        states = optimizer.state[a], resumed.state[b]
        assert states[0].keys() == states[1].keys()
        for key, value in states[0].items():
            assert value.equal(states[1][key]) if isinstance(value, torch.Tensor) else value == states[1][key]


def test_eight_bits_are_what_is_stored_and_tables_are_stored_once(tmp_path: Any) -> None:
    from safetensors.torch import load_file

    model, optimizer = saved(tmp_path, "adamw_8bit", 1)
    kinds = {n: optimizer.state[p]["state1"].dtype for n, p in model.named_parameters()}
    assert kinds["0.weight"] == torch.uint8 and kinds["2.weight"] == kinds["0.bias"] == torch.float32
    stored = load_file(tmp_path / "step-1" / "state.safetensors")
    assert sum(t.dtype == torch.uint8 and t.ndim == 2 for t in stored.values()) == 2
    assert sum(n.endswith(("qmap1", "qmap2")) for n in stored) == 2


def test_eight_bits_learn_what_32_learn() -> None:
    """Neither falls behind: the losses after the same steps are close."""
    losses = {}
    for name in ("adamw", "adamw_8bit"):
        model, optimizer = build(name)
        losses[name] = [step(model, optimizer) for _ in range(30)]
    assert losses["adamw"][-1] < 0.3 * losses["adamw"][0]
    assert abs(losses["adamw_8bit"][-1] - losses["adamw"][-1]) < 0.05 * losses["adamw"][0]


@pytest.mark.parametrize("name", ["adamw", "sgd", "adamw_8bit"])
def test_a_simulation_counts_the_state_and_what_an_update_takes(name: str) -> None:
    """Against the allocator: state and workspace of a real update, byte for byte."""
    model, optimizer = build(name)
    step(model, optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    state = sum(t.nbytes for t in {id(v): v for v in tensors(optimizer)}.values())
    real = peak_bytes(lambda: (torch.empty(1), optimizer.step()))
    recorder = Recorder()
    fake, _ = build(name)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in fake.modules():
            for key, p in module._parameters.items():
                module._parameters[key] = torch.nn.Parameter(torch.empty(p.shape))
        optimizer = make(fake, name)
        for p in fake.parameters():
            p.grad = torch.empty_like(p)
        with recorder:
            recorder.own(fake.parameters(), "adapter")
            optimizer.step()
            recorder.own(tensors(optimizer), "optimizer")
            recorder.enter("optimizer")
            optimizer.step()
    found = recorder.estimate()
    assert found.parts["optimizer"] == state
    assert abs(found.peak_bytes - found.parts["adapter"] - state - real) <= 64  # a few numbers of four bytes


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_update_allocates_nothing_in_the_middle(name: str) -> None:
    """So that memory cannot run out when half of it is applied."""
    model, optimizer = build(name)
    step(model, optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    assert peak_bytes(lambda: (torch.empty(1), optimizer.step())) <= 64


def test_what_bitsandbytes_cannot_do_here() -> None:
    assert {n for n in ("adamw", "sgd", "adamw_8bit") if devices.optimizer_refused(n, "cpu") is None} == {
        "adamw",
        "sgd",
        "adamw_8bit",
    }
    for name in ("paged_adamw", "paged_adamw_8bit"):
        assert devices.optimizer_refused(name, "cuda:0") is None
        assert "use adamw_8bit" in (devices.optimizer_refused(name, "cpu") or "")
    assert "use adamw" in (devices.optimizer_refused("adamw_8bit", "mps") or "")


def test_only_large_states_are_paged() -> None:
    paged: Any = SimpleNamespace(is_paged=True)
    assert optimisation.is_paged(paged, torch.empty(400, 250)) and not optimisation.is_paged(paged, torch.empty(99_999))
    assert not optimisation.is_paged(torch.optim.SGD([torch.zeros(1)]), torch.empty(400, 250))
