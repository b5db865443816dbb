"""Adapters that go wrong with a task, each caught by the part of `try_pair` that is meant to catch it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from task_samples import SAMPLES

from pefttool.api.values import Attached, Problem
from pefttool.config import registry as registries
from pefttool.config.registry import Kind, Registered
from pefttool.setup.attach import Adapted
from pefttool.testing.bench import ContractViolation
from pefttool.testing.matrix import try_pair
from pefttool_lora.adapter import LoraAdapter

REGISTRY = registries.build()


class Curt(LoraAdapter):
    def check(self, options: Any, facts: Any) -> list[Problem]:
        return [Problem("adapter.name", "'lora' is not for this")]


class Idle(LoraAdapter):
    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        attached = super().attach(model, options, facts)
        within = sorted(attached.trainable)[0].rpartition(".")[0]  # a module that the adapter did change
        attached.model.get_submodule(within).register_parameter("nothing", torch.nn.Parameter(torch.zeros(3)))
        return replace(attached, trainable=attached.trainable | {f"{within}.nothing"})


class Restless(LoraAdapter):
    """Its forward pass changes a weight of the base."""

    def attach(self, model: Any, options: Any, facts: Any) -> Attached:
        def change(module: Any, inputs: Any) -> None:
            if torch.is_grad_enabled():
                module.word_embeddings.weight.data.add_(1e-3)

        model.bert.embeddings.register_forward_pre_hook(change)
        return super().attach(model, options, facts)


class Forgetful(LoraAdapter):
    def load(self, model: Any, folder: Path) -> Any:
        return model


class Rounding(LoraAdapter):
    """What it loads answers alike to five digits, and is judged otherwise in the last."""

    def load(self, model: Any, folder: Path) -> Any:
        loaded = super().load(model, folder)
        for parameter_name, parameter in loaded.named_parameters():
            if "lora_B" in parameter_name:
                parameter.data *= 1 + 1e-6
        return loaded


class Lingering(LoraAdapter):
    def disabled(self, model: Any) -> Any:
        return nullcontext()


class Careless(LoraAdapter):
    def merge(self, model: Any) -> Any:
        return model.unload()


BROKEN = {
    "is refused without a way out": Curt,
    "nothing'.* gets no gradient": Idle,
    "word_embeddings.* does not train, and changed": Restless,
    "when loaded": Forgetful,
    "is judged by": Rounding,
    "when switched off": Lingering,
    "merged": Careless,
}


def test_a_best_evaluation_without_its_statistics_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's own part: what was judged is more than what trains."""
    put_back = Adapted.put_back

    def parameters_alone(self: Adapted, state: Any) -> None:
        put_back(self, {**self.changed_buffers(), **{n: t for n, t in state.items() if n in self.parameters()}})

    monkeypatch.setattr(Adapted, "put_back", parameters_alone)
    rows = SAMPLES["image-classification"].rows(tmp_path)
    with pytest.raises(ContractViolation, match="is judged by"):
        try_pair(REGISTRY, "image-classification", "full", rows, "convolutional")


@pytest.mark.parametrize("complaint", BROKEN)
def test_it_is_caught(complaint: str, tmp_path: Path) -> None:
    sample, owner = SAMPLES["text-classification"], REGISTRY.adapters.owner("lora")
    adapters = Kind[Any]("adapter", {"lora": Registered(BROKEN[complaint](), owner)}, {})
    registry = replace(REGISTRY, adapters=adapters)
    with pytest.raises(ContractViolation, match=complaint):
        try_pair(registry, "text-classification", "lora", sample.rows(tmp_path), sample.kind)
