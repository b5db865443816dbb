"""Gradient checkpointing: the same gradients to the bit, from activations that were not kept."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
from adapted_models import ADAPTERS, adapted, gradients, same
from allocations import peak_bytes
from architectures import ARCHITECTURES
from torch import nn

from pefttool import Facts
from pefttool.models import facts
from pefttool.nn import gradient_checkpointing
from pefttool_head.adapter import HeadAdapter
from pefttool_head.options import HeadOptions
from pefttool_prefix.adapter import PrefixAdapter
from pefttool_prefix.options import PrefixOptions
from pefttool_text import packed

MODES = {"non-reentrant": False, "reentrant": True}
#: Adapter, model, and whether its base is quantised.
CASES = [
    *((adapter, kind, False) for adapter in ADAPTERS for kind in ("bert", "llama")),
    ("lora", "bert", True),
    ("lora", "llama", True),
]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.store(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("adapter", "kind", "nf4"), CASES)
def test_gradients_are_the_same_to_the_bit(stored: Path, adapter: str, kind: str, nf4: bool, mode: str) -> None:
    model = adapted(stored, adapter, kind, nf4)
    inputs = tiny.batch()
    plain = gradients(model, inputs)
    assert same(plain, gradients(model, inputs))  # dropout follows the seed
    calls: list[str] = []
    blocks = [m for n, m in model.named_modules() if n.endswith((".mlp", ".intermediate"))]
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: calls.append("mlp"))
    gradient_checkpointing.install(model, MODES[mode])
    assert same(plain, gradients(model, inputs))
    again = {"full-last": 1, "head-last": 2}.get(adapter, 3)
    assert len(blocks) == 3 and len(calls) == 3 + again


@pytest.mark.parametrize("mode", MODES)
def test_packed_rows_stay_apart(stored: Path, mode: str) -> None:
    model = adapted(stored, "lora", "llama", False)
    rows = [{"input_ids": list(range(5, 5 + n)), "labels": list(range(n))} for n in (7, 3, 1)]
    inputs = {**packed.model_inputs(packed.collate(rows)), "use_cache": False}
    plain = gradients(model, inputs)
    gradient_checkpointing.install(model, MODES[mode])
    assert same(plain, gradients(model, inputs))


@pytest.mark.parametrize("mode", MODES)
def test_activations_are_not_kept(stored: Path, mode: str) -> None:
    """Masks of padded rows among them, which attention needs in its backward pass."""
    peaks = {}
    for recomputes in (False, True):
        model = adapted(stored, "lora", "bert", False)
        if recomputes:
            gradient_checkpointing.install(model, MODES[mode])
        inputs = tiny.batch(rows=4, tokens=48)
        gradients(model, inputs)
        kept: list[Any] = []
        peaks[recomputes] = peak_bytes(lambda model=model, inputs=inputs, kept=kept: kept.append(model(**inputs)))
    assert peaks[True] < 0.6 * peaks[False]


def test_evaluation_recomputes_nothing_and_needs_no_gradient(stored: Path) -> None:
    model = adapted(stored, "lora", "llama", False)
    before = tiny.logits(model)
    gradient_checkpointing.install(model, reentrant=True)
    assert tiny.logits(model).equal(before)


class Odd(nn.Module):
    """A model whose blocks are its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))


def test_whose_blocks_can(stored: Path) -> None:
    assert all(tiny.known(tiny.load_base(stored, kind), kind).recomputable for kind in tiny.TASKS)
    assert not tiny.known(Odd(), "llama").recomputable


def test_adapters_say_what_they_cannot() -> None:
    ask = partial(Facts, architecture="X", layers=("a.0", "a.1"), head_modules=("h",), key_value_cache=True)
    known, silent = ask(recomputes=True, peft_task_type="SEQ_CLS"), ask(peft_task_type="SEQ_CLS")
    refusals = {
        "prefix": PrefixAdapter().check(PrefixOptions(), known),
        "head": HeadAdapter().check(HeadOptions(), known),
    }
    for name, problems in refusals.items():
        (problem,) = problems
        assert (
            problem.key == "train.gradient_checkpointing" and name in problem.message and "use none" in problem.message
        )
    assert not PrefixAdapter().check(PrefixOptions(), silent) and not HeadAdapter().check(HeadOptions(), silent)
    assert not HeadAdapter().check(HeadOptions(train_last_layers=1), known)


def test_the_families_that_cannot_recompute_are_those_that_the_docs_name() -> None:
    class AnyTask(tiny.TinyTask):
        def head_modules(self, model: nn.Module) -> tuple[str, ...]:
            return ()

    models = {name: family.build() for name, family in ARCHITECTURES.items()}
    unable = {name for name, model in models.items() if not facts.inspect(model, AnyTask("llama")).recomputable}
    assert unable == {"albert", "patchtst"}
    for page in ("memory.md", "tasks.md"):
        text = (Path(__file__).parents[3] / "docs" / page).read_text(encoding="utf-8")
        assert "ALBERT" in text and "PatchTST" in text, page
