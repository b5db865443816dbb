"""What the plan refuses of the knobs, with the way out; what is compiled, and that it computes the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models as tiny
import torch
from adapted_models import adapted, gradients, same
from torch import Tensor, nn

from pefttool import Facts
from pefttool.config.settings import MemorySettings, TrainSettings
from pefttool.nn import compiling, gradient_checkpointing
from pefttool.setup import devices, plan
from pefttool_text import packed


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.store(tmp_path_factory.mktemp("tiny"))


def refusals(device: str = "cpu", known: dict[str, Any] | None = None, offload: Any = (), **train: Any) -> list[str]:
    made: Any = SimpleNamespace(
        recipe=SimpleNamespace(train=TrainSettings(**train), memory=MemorySettings(offload=offload)),
        choice=SimpleNamespace(device=device),
        facts=Facts(architecture="Odd", **(known or {"layers": ("a.0",)})),
    )
    return [str(problem) for problem in plan.techniques_refused(made)]


def test_defaults_are_never_refused() -> None:
    assert refusals(known={"layers": ()}) == refusals("cuda:1") == refusals("mps") == []


def test_what_cannot_be_is_refused_with_a_way_out() -> None:
    assert refusals(known={"recomputes": True}, gradient_checkpointing="reentrant") == [
        "train.gradient_checkpointing: the blocks of Odd cannot compute their activations again; use none"
    ]
    assert refusals(known={"recomputes": True, "recomputable": True}, gradient_checkpointing="reentrant") == []
    assert refusals(offload=("activations",)) == [
        "memory.offload: 'activations': on cpu they are in host memory already; drop it"
    ]
    assert refusals("cuda", offload=("activations",)) == []
    assert refusals(optimizer="adamw_8bit") == []
    (line,) = refusals(optimizer="paged_adamw")
    assert line.startswith("train.optimizer: 'paged_adamw' ") and line.endswith("on a CPU use adamw_8bit")
    (line,) = refusals(compile=True, known={"layers": ()})
    assert line == "train.compile: Odd has no repeated blocks; drop it"
    assert len(refusals(offload=("activations",), optimizer="paged_adamw")) == 2  # all at once


def test_a_compiler_that_is_missing_is_named() -> None:
    line = devices.compiler_missing("cpu", {"CXX": "/nowhere/c++"})
    assert line is not None and "'/nowhere/c++'" in line and "install it, or set CXX" in line
    assert devices.compiler_missing("cpu", {"CXX": "true"}) is None
    assert "needs a C compiler, and there is no '/nowhere/cc'" in (
        devices.compiler_missing("cuda", {"CC": "/nowhere/cc"}) or ""
    )
    assert devices.compiler_missing("cuda", {"CC": "true"}) is None
    assert "untested" in (devices.compiler_missing("mps") or "")


def blocks(model: nn.Module) -> list[nn.Module]:
    return [m for n, m in model.named_modules() if n.rpartition(".")[0].endswith(("layers", "layer"))]


@pytest.mark.parametrize(
    ("kind", "parts"),
    [("llama", {"mlp", "input_layernorm", "post_attention_layernorm"}), ("bert", {"intermediate", "output"})],
)
def test_what_is_compiled(stored: Path, kind: str, parts: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(stored, "lora", kind, False)
    names = {id(module): name for name, module in model.named_modules()}
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, dynamic: compiled.append(names[id(self)]))
    compiling.install(blocks(model))
    assert {name.rpartition(".")[2] for name in compiled} == parts and len(compiled) == 3 * len(parts)
    assert [name for name, _ in model.named_modules()] == list(names.values())


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest distance of a gradient, relative to the largest gradient."""
    assert found.keys() == expected.keys()
    return max(float((found[n] - expected[n]).norm()) for n in found) / max(float(g.norm()) for g in expected.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "kind", "nf4"), [("lora", "llama", False), ("lora", "llama", True), ("full", "bert", False)]
)
def test_compiled_blocks_have_the_same_gradients(stored: Path, adapter: str, kind: str, nf4: bool) -> None:
    """For batches of several shapes, packed rows among them, with evaluations in between."""
    model = adapted(stored, adapter, kind, nf4)
    rates = {module: module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    for module in rates:
        module.p = 0.0
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    inputs = [tiny.batch(), tiny.batch(2, 11), tiny.batch(1, 7)]
    if kind == "llama":
        for lengths in ((7, 3, 1), (4, 9), (5,)):
            rows = [{"input_ids": list(range(5, 5 + n)), "labels": list(range(n))} for n in lengths]
            inputs.append({**packed.model_inputs(packed.collate(rows)), "use_cache": False})
    expected = [gradients(model, given) for given in inputs]
    answers = tiny.logits(model)
    compiling.install(blocks(model))
    for given, plain in zip(inputs, expected, strict=True):
        assert error(gradients(model, given), plain) < 1e-5
        assert float((tiny.logits(model) - answers).norm() / answers.norm()) < 1e-5
    gradient_checkpointing.install(model, reentrant=False)
    assert error(gradients(model, inputs[0]), expected[0]) < 1e-5
    for module, rate in rates.items():  # dropout follows the seed, and differs from another's
        module.p = rate
    first = gradients(model, inputs[0])
    assert same(first, gradients(model, inputs[0])) and error(first, expected[0]) > 1e-2
    assert torch.initial_seed() == 5
