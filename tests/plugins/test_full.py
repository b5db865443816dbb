"""Full fine-tuning: everything trains in float32, and plain transformers loads what was saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
from pydantic import ValidationError
from safetensors.torch import load, load_file, save

from pefttool import ModelError, UsageError
from pefttool_full.adapter import FullAdapter
from pefttool_full.options import FullOptions
from pefttool_text.pooling import MeanPooled

ADAPTER = FullAdapter()
KINDS = ["bert", "llama"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.store(tmp_path_factory.mktemp("models"))


def attach(model: Any, kind: str, **options: Any) -> Any:
    facts = tiny.known(model, kind)
    assert ADAPTER.check(FullOptions(**options), facts) == []
    return ADAPTER.attach(model, FullOptions(**options), facts)


def trained(model: Any, kind: str, **options: Any) -> Any:
    attached = attach(model, kind, **options)
    heads = tiny.heads(attached.model, kind)
    parameters = [*tiny.trained(attached.model, attached.trainable), *heads.values()]
    return attached, tiny.train(attached.model, parameters, rate=3e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_but_the_head_is_the_adapters(models: Path, kind: str) -> None:
    model = tiny.load_base(models, kind, dtype=torch.bfloat16)
    attached = attach(model, kind)
    named = dict(model.named_parameters())
    assert attached.trainable == {n for n in named if not n.startswith("classifier.")}
    assert {named[n].dtype for n in attached.trainable} == {torch.float32}
    if kind == "llama":
        assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_base_and_learns(models: Path, kind: str) -> None:
    model = tiny.load_base(models, kind)
    outputs = tiny.logits(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert torch.equal(tiny.logits(attach(model, kind).model), outputs)
    attached, losses = trained(tiny.load_base(models, kind), kind)
    assert losses[-1] < 0.9 * losses[0]
    after = dict(attached.model.named_parameters())
    assert not [n for n in before if torch.equal(before[n], after[n])]


@pytest.mark.parametrize("kind", KINDS)
def test_on_request_only_the_last_layers_train(models: Path, kind: str) -> None:
    model = tiny.load_base(models, kind)
    before = tiny.base_bytes(model)
    attached, losses = trained(model, kind, train_last_layers=1)
    after = tiny.base_bytes(attached.model)
    changed = {n for n in before if before[n] != after[n]}
    block = "bert.encoder.layer.2." if kind == "bert" else "model.layers.2."
    follows = ("bert.pooler.", "classifier.") if kind == "bert" else ("model.norm.",)
    assert any(n.startswith(block) for n in changed)
    assert all(n.startswith((block, *follows)) for n in changed)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("count", [None, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_plain_transformers_loads_the_folder(models: Path, tmp_path: Path, kind: str, count: int | None) -> None:
    """Without naming a dtype: a folder that says bfloat16 would lose the last digits of what was trained."""
    model = tiny.load_base(models, kind, dtype=torch.bfloat16)
    attached = attach(model, kind, train_last_layers=count)
    with torch.no_grad():
        for parameter in tiny.trained(attached.model, attached.trainable):
            parameter.mul_(1.001)  # what bfloat16 cannot hold
    tiny.save(ADAPTER, attached.model, tmp_path, kind)
    attached.model.float()
    torch.save({**tiny.batch(), "expected": tiny.logits(attached.model)}, tmp_path / "expected.pt")
    difference = tiny.run_without_pefttool(f"""
import torch, transformers
model = transformers.{tiny.TASKS[kind][0]}.from_pretrained({str(tmp_path)!r}).eval()
stored = torch.load({str(tmp_path / "expected.pt")!r})
expected = stored.pop("expected")
with torch.no_grad():
    logits = model(**stored).logits
logits = logits[stored["attention_mask"].bool()] if logits.ndim == 3 else logits
assert logits.shape == expected.shape and logits.dtype == torch.float32
print(float((logits - expected).abs().max()))
""")
    assert float(difference) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_answers_bit_for_bit(models: Path, tmp_path: Path, kind: str) -> None:
    model = tiny.load_base(models, kind)
    attached, _ = trained(model, kind)
    tiny.save(ADAPTER, attached.model, tmp_path, kind)
    loaded = ADAPTER.load(tiny.load_base(models, kind, dtype=torch.bfloat16), tmp_path)
    assert torch.equal(tiny.logits(loaded), tiny.logits(attached.model))
    assert not any(p.requires_grad for p in loaded.parameters())
    if kind == "llama":
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_head_of_the_tasks_own_is_stored_beside_the_backbone(models: Path, tmp_path: Path) -> None:
    model = MeanPooled(tiny.load_base(models, "bert").bert, tiny.CLASSES)
    attached = attach(model, "bert")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    tiny.save(ADAPTER, attached.model, tmp_path, "bert")
    assert set(load_file(tmp_path / "head.safetensors")) == {"classifier.weight", "classifier.bias"}
    loaded: Any = ADAPTER.load(MeanPooled(tiny.load_base(models, "bert").bert, tiny.CLASSES), tmp_path)
    assert all(
        torch.equal(p, q) for p, q in zip(loaded.backbone.parameters(), model.backbone.parameters(), strict=True)
    )


def test_merging_gives_the_model_itself(models: Path) -> None:
    model = tiny.load_base(models, "llama")
    attach(model, "llama")
    assert ADAPTER.merge(model) is model
    attach(model, "llama")


def test_a_second_attach_is_refused(models: Path) -> None:
    model = tiny.load_base(models, "bert")
    attach(model, "bert")
    with pytest.raises(UsageError, match="already carries 'full'"):
        attach(model, "bert")


def test_it_says_beforehand_where_it_cannot_work(models: Path) -> None:
    facts = tiny.known(tiny.load_base(models, "bert"), "bert")
    (problem,) = ADAPTER.check(FullOptions(), replace(facts, quantizer="int8"))
    assert problem.key == "adapter.name" and "'int8'" in problem.message
    (problem,) = ADAPTER.check(FullOptions(train_last_layers=9), facts)
    assert problem.key == "adapter.train_last_layers"
    with pytest.raises(ValidationError):
        FullOptions(train_last_layers=0)


def test_a_damaged_folder_is_one_line(models: Path, tmp_path: Path) -> None:
    model = tiny.load_base(models, "bert")
    tiny.save(ADAPTER, attach(model, "bert").model, tmp_path, "bert")
    weights = tmp_path / "model.safetensors"
    good = weights.read_bytes()
    lost = "bert.encoder.layer.1.output.dense.weight"
    for damaged, said in (
        (good[:-9], "cannot be loaded"),
        (save({n: t for n, t in load(good).items() if n != lost}, metadata={"format": "pt"}), lost),
    ):
        weights.write_bytes(damaged)
        with pytest.raises(ModelError, match=said) as caught:
            ADAPTER.load(tiny.load_base(models, "bert"), tmp_path)
        assert "\n" not in str(caught.value)


def test_works_on_a_model_without_data() -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny.configs()["llama"])
    attached = ADAPTER.attach(model, FullOptions(), tiny.known(model, "llama", abstract=True))
    assert all(p.requires_grad for p in attached.model.parameters())


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_trains_in_float32_beside_a_bfloat16_base(models: Path, kind: str) -> None:
    model = tiny.load_base(models, kind, dtype=torch.bfloat16)
    for module in tiny.TASKS[kind][2]:
        model.get_submodule(module).float()  # as the core does with a new head
    attached = attach(model, kind)
    heads = tiny.heads(attached.model, kind)
    found = tiny.gradients_in_bfloat16(attached.model)
    assert len(found) == len(attached.trainable) + len(heads)
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert all(g.isfinite().all() for g in found.values())


def test_it_is_found_through_its_entry_point(registry: Any) -> None:
    assert isinstance(registry.adapters["full"], FullAdapter)
    assert registry.adapters["full"].trains_base
