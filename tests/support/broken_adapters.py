"""A sound adapter, and some that break the contract on purpose: each changes one thing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pefttool.api.adapter import Adapter
from pefttool.api.errors import NotMergeable
from pefttool.api.values import Attached
from pefttool.toolkit.peft_folder import read_tensors, write_tensors


class Shift(Adapter):
    """A sound adapter: a trained shift of one layer's output. The broken ones below change one thing each."""

    name = "shift"
    kind, layer = "encoder", "bert.encoder.layer.0.output.dense"
    quantizer: str | None = None

    def defaults(self, task: Any) -> dict[str, float]:
        return {"learning_rate": 1e-2}

    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        from pefttool.toolkit import attachment

        attachment.claim(model, self.name)
        model.requires_grad_(False)
        self.add(model)
        return Attached(model, frozenset({f"{self.layer}.shift"}))

    def add(self, model: Any, start: float = 0.0) -> None:
        layer = model.get_submodule(self.layer)
        layer.register_parameter("shift", torch.nn.Parameter(torch.linspace(0, start, layer.out_features)))
        layer.register_forward_hook(lambda module, _, output: output + module.shift)

    def save(self, model: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "adapter.safetensors", {"shift": model.get_submodule(self.layer).shift})

    def load(self, model: Any, folder: Path) -> Any:
        self.add(model)
        model.get_submodule(self.layer).shift.data.copy_(read_tensors(folder / "adapter.safetensors")["shift"])
        return model.requires_grad_(False)


class ChangesTheBase(Shift):
    def after(self, module: Any, inputs: Any, output: Any) -> None:
        with torch.no_grad():
            module.weight.mul_(1.0001)

    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        attached = super().attach(model, options, facts)
        model.get_submodule(self.layer).register_forward_hook(self.after)
        return attached


class SwapsTheBase(Shift):
    """Before the first step already, so that comparing before and after training would not show it."""

    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        attached = super().attach(model, options, facts)
        layer = model.get_submodule(self.layer)
        layer.weight = torch.nn.Parameter(layer.weight.detach() * 2, requires_grad=False)
        return Attached(attached.model, attached.trainable, identity_at_init=False)


class TrainsTheBase(Shift):
    """The naive BitFit: the base's own bias, openly declared."""

    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        attached = super().attach(model, options, facts)
        model.get_submodule(self.layer).bias.requires_grad_(True)
        return Attached(attached.model, attached.trainable | {f"{self.layer}.bias"})


class Drifts(Shift):
    """Something of the adapter's own changes in evaluation, and is no parameter."""

    def add(self, model: Any, start: float = 0.0) -> None:
        super().add(model, start)
        layer = model.get_submodule(self.layer)
        layer.register_buffer("calls", torch.zeros(2))
        layer.register_forward_pre_hook(self.count)

    @staticmethod
    def count(module: Any, inputs: Any) -> None:
        module.calls.add_(1)


class NotTheIdentity(Shift):
    def add(self, model: Any, start: float = 0.5) -> None:
        super().add(model, start)


class ForgetsToDeclare(Shift):
    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        attached = super().attach(model, options, facts)
        model.get_submodule(self.layer).bias.requires_grad_(True)
        return attached


class ChangesAnother(Shift):
    """It was told one layer, and changed another."""

    told: tuple[str, ...] = ("bert.encoder.layer.1.output.dense",)

    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        return replace(super().attach(model, options, facts), modules=self.told)


class LeavesOneOut(ChangesAnother):
    told = (Shift.layer, *ChangesAnother.told)


class TrainsNothing(Shift):
    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        attached = super().attach(model, options, facts)
        model.get_submodule(self.layer).shift.requires_grad_(False)
        return attached


class Wrapper(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, **inputs: Any) -> Any:
        return self.inner(**inputs)


class HidesTheHead(Shift):
    """In a wrapper that the core cannot look through: the head would stay random."""

    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        attached = super().attach(model, options, facts)
        return Attached(Wrapper(attached.model), frozenset(f"inner.{n}" for n in attached.trainable))


class CutsTheHeadOff(Shift):
    def add(self, model: Any, start: float = 0.0) -> None:
        super().add(model, start)
        model.classifier.register_forward_hook(
            lambda module, inputs, _: torch.nn.functional.linear(*inputs, module.weight.detach(), module.bias)
        )


class TrainsInHalfPrecision(Shift):
    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        attached = super().attach(model, options, facts)
        layer = model.get_submodule(self.layer)
        layer.shift.data = layer.shift.data.half()
        return attached


class GroupsTwice(Shift):
    def param_groups(self, model: Any, trainable: Any, learning_rate: float) -> list[dict[str, Any]]:
        return super().param_groups(model, trainable, learning_rate) * 2


class SavesTheBase(Shift):
    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        write_tensors(folder / "more.safetensors", {"weight": model.get_submodule(self.layer).weight})


class SavesTheBaseTransposed(Shift):
    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        write_tensors(folder / "more.safetensors", {"weight": model.get_submodule(self.layer).weight.T})


class SavesUnderTheBasesName(Shift):
    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        layer = model.get_submodule(self.layer)
        write_tensors(folder / "more.safetensors", {f"model.{self.layer}.bias": layer.bias + layer.shift})


class Pickles(Shift):
    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        torch.save({"shift": model.get_submodule(self.layer).shift}, folder / "adapter.bin")


class OnDecoders(Shift):
    kind, layer = "decoder", "model.layers.0.mlp.down_proj"


class LosesTheFirst(OnDecoders):
    """As if it had put something in front of the text, and had cut away too much."""

    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        attached = super().attach(model, options, facts)
        model.register_forward_hook(self.cut)
        return attached

    def cut(self, module: Any, inputs: Any, output: Any) -> Any:
        output.logits = output.logits[:, 1:]
        return output


class SavesNothing(OnDecoders):
    def save(self, model: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)


class LosesPrecision(Shift):
    def save(self, model: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "adapter.safetensors", {"shift": model.get_submodule(self.layer).shift.bfloat16()})


class ForgetsToCopy(Shift):
    def load(self, model: Any, folder: Path) -> Any:
        self.add(model)
        return model.requires_grad_(False)


class LosesHalfOfIt(Shift):
    """Saved in a form of its own, where the core cannot look for the values."""

    def save(self, model: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        shift = model.get_submodule(self.layer).shift
        write_tensors(folder / "adapter.safetensors", {"half": shift[: len(shift) // 2] * 2})

    def load(self, model: Any, folder: Path) -> Any:
        self.add(model)
        half = read_tensors(folder / "adapter.safetensors")["half"] / 2
        model.get_submodule(self.layer).shift.data[: len(half)] = half
        return model.requires_grad_(False)


class StillTrainsWhenLoaded(Shift):
    def load(self, model: Any, folder: Path) -> Any:
        loaded = super().load(model, folder)
        loaded.get_submodule(self.layer).shift.requires_grad_(True)
        return loaded


class AttachesTwice(Shift):
    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        model.requires_grad_(False)
        self.add(model)
        return Attached(model, frozenset({f"{self.layer}.shift"}))


class SpoilsTheFirst(Shift):
    """Refuses the second attach only after it has changed the model."""

    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        if hasattr(model.get_submodule(self.layer), "shift"):
            model.get_submodule(self.layer).shift.data.add_(1)
        return super().attach(model, options, facts)


class FreezesTheFirst(Shift):
    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        model.requires_grad_(False)
        return super().attach(model, options, facts)


class MergesNothing(Shift):
    def merge(self, model: Any) -> Any:
        return model


class MergesWrongly(Shift):
    def merge(self, model: Any) -> Any:
        model.get_submodule(self.layer).shift.data.zero_()
        return model


class RefusesWithoutReason(Shift):
    def merge(self, model: Any) -> Any:
        raise NotMergeable("no")


class IgnoresTheSeed(Shift):
    starts = iter(range(1, 1000))

    def add(self, model: Any, start: float = 0.0) -> None:
        super().add(model, next(self.starts) / 10)


class HasAnIdlePart(Shift):
    """Half of what it declares is in the loss, and has no gradient."""

    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        attached = super().attach(model, options, facts)
        layer = model.get_submodule(self.layer)
        layer.register_parameter("idle", torch.nn.Parameter(torch.zeros(layer.out_features)))
        layer.register_forward_hook(lambda module, _, output: output + 0 * module.idle)
        return Attached(attached.model, attached.trainable | {f"{self.layer}.idle"})


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


class SkipsARow(Shift):
    """Its gradient leaves out the first row of every micro-batch."""

    def add(self, model: Any, start: float = 0.0) -> None:
        super().add(model, start)
        layer = model.get_submodule(self.layer)

        def hook(module: Any, _: Any, output: Any) -> Any:
            return torch.cat([output[:1].detach(), output[1:]]) if module.training else output

        layer.register_forward_hook(hook)


class LosesTheGradientWhenLoaded(Shift):
    def load(self, model: Any, folder: Path) -> Any:
        loaded = super().load(model, folder)
        layer = model.get_submodule(self.layer)
        layer.register_forward_hook(lambda module, _, output: output.detach())
        return loaded


class SeesTheNeighbour(OnDecoders):
    """Across the whole sequence, whoever it is of."""

    def add(self, model: Any, start: float = 0.0) -> None:
        super().add(model, start)
        model.get_submodule(self.layer).register_forward_hook(
            lambda module, _, output: output + module.shift * output.roll(1, dims=1)
        )


class ReadsTheWeight(OnDecoders):
    """As it is stored: not there when it is streamed, and packed when it is quantised."""

    quantizer = "nf4"

    def add(self, model: Any, start: float = 0.0) -> None:
        super().add(model, start)
        model.get_submodule(self.layer).register_forward_hook(
            lambda module, _, output: output * (1 + module.weight.float().abs().sum() / 1e6)
        )


class StaysOff(Shift):
    def disabled(self, model: Any) -> Any:
        from contextlib import nullcontext

        model.get_submodule(self.layer).shift.data.zero_()
        return nullcontext()


class CannotBeSwitchedOff(Shift):
    def disabled(self, model: Any) -> Any:
        from contextlib import nullcontext

        return nullcontext()
