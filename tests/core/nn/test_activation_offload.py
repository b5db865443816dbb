"""Activations in host memory: the same gradients to the bit, weights stay, and a simulation counts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
from adapted_models import adapted, gradients, same
from torch import Tensor

from pefttool.nn import activation_offload, gradient_checkpointing, placement, tensors


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.store(tmp_path_factory.mktemp("tiny"))


@contextmanager
def device() -> Iterator[list[Tensor]]:
    """A pretended device; yields what was moved to the host."""
    moved: list[Tensor] = []
    with placement.pretending("cuda", moved.append):
        yield moved


@pytest.mark.parametrize("mode", ["none", "non-reentrant", "reentrant"])
@pytest.mark.parametrize(
    ("adapter", "kind", "nf4"),
    [("lora", "bert", False), ("lora", "llama", True), ("full", "llama", False), ("head-last", "bert", False)],
)
def test_gradients_are_the_same_to_the_bit(stored: Path, adapter: str, kind: str, nf4: bool, mode: str) -> None:
    model = adapted(stored, adapter, kind, nf4)
    inputs = tiny.batch()
    with device() as moved:
        plain = gradients(model, inputs)
        assert not moved
        if mode != "none":
            gradient_checkpointing.install(model, mode == "reentrant")
        activation_offload.install(model, smallest=1)
        assert same(plain, gradients(model, inputs))
    weights = {p.detach().numpy().tobytes() for p in model.parameters() if p.ndim == 2}
    assert moved and not any(t.numpy().tobytes() in weights for t in moved)


def test_what_is_saved_twice_is_moved_once(stored: Path) -> None:
    """Query, key and value multiply the same input, some of them in another shape."""
    model = adapted(stored, "full", "llama", False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_()  # a norm's weight of ones would make different tensors look the same
    with device() as moved:
        activation_offload.install(model, smallest=1000)
        gradients(model, tiny.batch())
    values = [tensor.numpy().tobytes() for tensor in moved]
    assert len(set(values)) == len(values) > 20


def test_what_is_small_stays(stored: Path) -> None:
    model = adapted(stored, "lora", "bert", False)
    with device() as moved:
        activation_offload.install(model, smallest=1000)
        gradients(model, tiny.batch())
    assert moved and all(tensor.nbytes >= 1000 for tensor in moved)


def test_a_memory_that_was_used_again_is_not_taken_for_the_old_one() -> None:
    """Storages are known by their address, which the next tensor may get."""
    moves = activation_offload.Offload(torch.nn.Linear(2, 2), smallest=1)
    with device():
        kept = []
        for i in range(50):
            kept.append(moves.pack(torch.full((16,), float(i))))
        assert [float(moves.unpack(packed)[0]) for packed in kept] == list(map(float, range(50)))
        changed = torch.zeros(16)
        first = moves.pack(changed)
        changed += 1
        assert float(moves.unpack(moves.pack(changed))[3]) == 1 and float(moves.unpack(first)[3]) == 0


def test_evaluation_and_a_failed_pass_leave_no_hook(stored: Path) -> None:
    model = adapted(stored, "lora", "llama", False)
    with device() as moved:
        activation_offload.install(model, smallest=1)
        tiny.logits(model)
        assert not moved
        hook = model.get_submodule("base_model.model.model.layers.2").register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**tiny.batch())
        hook.remove()
        moved.clear()
        x = torch.randn(64, requires_grad=True)
        (x * x.exp()).sum().backward()
        assert not moved


def test_scales_of_quantised_weights_are_the_models_own(stored: Path) -> None:
    model: Any = adapted(stored, "lora", "llama", True)
    held = {id(tensor) for tensor in tensors.held_by(model)}
    states = [p.quant_state for p in model.parameters() if hasattr(p, "quant_state")]
    assert len(states) > 10
    for state in states:
        assert {id(state.absmax), id(state.code)} <= held
