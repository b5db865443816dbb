"""Adapters that break the contract on purpose, each caught by the check that is meant to catch it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pefttool.errors import PluginError
from pefttool.interfaces import Adapter, Attached, NotMergeable
from pefttool.peft_folder import read_tensors, write_tensors
from pefttool.testing import ADAPTER_CHECKS, AdapterCase, ContractViolation


class Shift(Adapter):
    """A sound adapter: a trained shift of one layer's output. The broken ones below change one thing each."""

    name = "shift"
    layer = "bert.encoder.layer.0.output.dense"

    def defaults(self, task: Any) -> dict[str, float]:
        return {"learning_rate": 1e-2}

    def attach(self, model: Any, options: Any, facts: Any, name: str = "default") -> Attached:
        from pefttool import claims

        claims.claim(model, self.name, name)
        model.requires_grad_(False)
        self.add(model)
        return Attached(model, frozenset({f"{self.layer}.shift"}))

    def add(self, model: Any, start: float = 0.0) -> None:
        layer = model.get_submodule(self.layer)
        layer.register_parameter("shift", torch.nn.Parameter(torch.linspace(0, start, layer.out_features)))
        layer.register_forward_hook(lambda module, _, output: output + module.shift)

    def save(self, model: Any, folder: Path, name: str = "default") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "adapter.safetensors", {"shift": model.get_submodule(self.layer).shift})

    def load(self, model: Any, folder: Path, name: str = "default") -> Any:
        self.add(model)
        model.get_submodule(self.layer).shift.data.copy_(read_tensors(folder / "adapter.safetensors")["shift"])
        return model.requires_grad_(False)


class ChangesTheBase(Shift):
    def after(self, module: Any, inputs: Any, output: Any) -> None:
        with torch.no_grad():
            module.weight.mul_(1.0001)

    def attach(self, model: Any, options: Any, facts: Any, name: str = "default") -> Attached:
        attached = super().attach(model, options, facts, name)
        model.get_submodule(self.layer).register_forward_hook(self.after)
        return attached


class NotTheIdentity(Shift):
    def add(self, model: Any, start: float = 0.5) -> None:
        super().add(model, start)


class ForgetsToDeclare(Shift):
    def attach(self, model: Any, options: Any, facts: Any, name: str = "default") -> Attached:
        attached = super().attach(model, options, facts, name)
        model.get_submodule(self.layer).bias.requires_grad_(True)
        return attached


class TrainsInHalfPrecision(Shift):
    def attach(self, model: Any, options: Any, facts: Any, name: str = "default") -> Attached:
        attached = super().attach(model, options, facts, name)
        layer = model.get_submodule(self.layer)
        layer.shift.data = layer.shift.data.half()
        return attached


class GroupsTwice(Shift):
    def param_groups(self, model: Any, trainable: Any, learning_rate: float) -> list[dict[str, Any]]:
        return super().param_groups(model, trainable, learning_rate) * 2


class SavesTheBase(Shift):
    def save(self, model: Any, folder: Path, name: str = "default") -> None:
        super().save(model, folder, name)
        write_tensors(folder / "more.safetensors", {"weight": model.get_submodule(self.layer).weight})


class LosesPrecision(Shift):
    def save(self, model: Any, folder: Path, name: str = "default") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "adapter.safetensors", {"shift": model.get_submodule(self.layer).shift.bfloat16()})


class StillTrainsWhenLoaded(Shift):
    def load(self, model: Any, folder: Path, name: str = "default") -> Any:
        loaded = super().load(model, folder, name)
        loaded.get_submodule(self.layer).shift.requires_grad_(True)
        return loaded


class AttachesTwice(Shift):
    def attach(self, model: Any, options: Any, facts: Any, name: str = "default") -> Attached:
        model.requires_grad_(False)
        self.add(model)
        return Attached(model, frozenset({f"{self.layer}.shift"}))


class MergesWrongly(Shift):
    def merge(self, model: Any, name: str = "default") -> Any:
        model.get_submodule(self.layer).shift.data.zero_()
        return model


class RefusesWithoutReason(Shift):
    def merge(self, model: Any, name: str = "default") -> Any:
        raise NotMergeable("no")


class IgnoresTheSeed(Shift):
    starts = iter(range(1, 1000))

    def add(self, model: Any, start: float = 0.0) -> None:
        super().add(model, next(self.starts) / 10)


class LearnsNothing(Shift):
    def add(self, model: Any, start: float = 0.0) -> None:
        super().add(model, start)
        model.get_submodule(self.layer).shift.register_hook(torch.zeros_like)
        model.classifier.register_forward_hook(lambda module, _, output: output * 0)


class DependsOnTheBatch(Shift):
    def add(self, model: Any, start: float = 0.0) -> None:
        super().add(model, start)
        model.get_submodule(self.layer).register_forward_hook(
            lambda module, _, out: out + out.mean(0) if module.training else out
        )


class CannotBeSwitchedOff(Shift):
    def disabled(self, model: Any) -> Any:
        from contextlib import nullcontext

        return nullcontext()


BROKEN: list[tuple[type[Shift], str]] = [
    (ChangesTheBase, "base_stays_as_it_was"),
    (NotTheIdentity, "identity_at_initialisation"),
    (ForgetsToDeclare, "trains_what_it_declares"),
    (TrainsInHalfPrecision, "trains_what_it_declares"),
    (GroupsTwice, "groups_cover_the_parameters"),
    (SavesTheBase, "file_holds_no_base"),
    (LosesPrecision, "save_and_load_are_exact"),
    (StillTrainsWhenLoaded, "save_and_load_are_exact"),
    (AttachesTwice, "second_attach_is_refused"),
    (MergesWrongly, "merges_or_says_why_not"),
    (RefusesWithoutReason, "merges_or_says_why_not"),
    (IgnoresTheSeed, "same_seed_same_result"),
    (LearnsNothing, "loss_falls"),
    (DependsOnTheBatch, "accumulation_changes_nothing"),
    (CannotBeSwitchedOff, "can_be_switched_off"),
]


@pytest.mark.parametrize(("broken", "check"), BROKEN, ids=[broken.__name__ for broken, _ in BROKEN])
def test_a_broken_adapter_is_caught(broken: type[Shift], check: str) -> None:
    with pytest.raises((ContractViolation, PluginError)) as caught:
        ADAPTER_CHECKS[check](AdapterCase(broken(), "encoder"))
    assert "shift" in str(caught.value)


def test_every_check_has_a_broken_adapter() -> None:
    assert {check for _, check in BROKEN} == set(ADAPTER_CHECKS)


@pytest.mark.parametrize("check", ADAPTER_CHECKS)
def test_the_sound_one_passes(check: str) -> None:
    ADAPTER_CHECKS[check](AdapterCase(Shift(), "encoder"))
