"""Head-only: the backbone keeps its bytes, a language model's output layer is untied, a short loader is enough."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
from safetensors.torch import load_file

from pefttool import ModelError, UsageError
from pefttool.toolkit import peft_folder
from pefttool_head.adapter import HeadAdapter
from pefttool_head.loader import LOADER
from pefttool_head.options import HeadOptions
from pefttool_text.pooling import MeanPooled

ADAPTER = HeadAdapter()
KINDS = ["bert", "llama"]


class WithLoader(MeanPooled):
    """A task's own model that says how it is rebuilt."""

    def plain_loader(self, base: str) -> str:
        return f"# rebuilds the head of {base}\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.store(tmp_path_factory.mktemp("models"))


def attach(model: Any, kind: str, **options: Any) -> Any:
    facts = tiny.known(model, kind)
    assert ADAPTER.check(HeadOptions(**options), facts) == []
    return ADAPTER.attach(model, HeadOptions(**options), facts)


def trained(models: Path, kind: str, **options: Any) -> Any:
    attached = attach(tiny.load_base(models, kind), kind, **options)
    heads = tiny.heads(attached.model, kind)
    tiny.train(attached.model, [*tiny.trained(attached.model, attached.trainable), *heads.values()])
    return attached


@pytest.mark.parametrize("nf4", [False, True], ids=["float32", "nf4"])
@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_base_and_trains_the_head_alone(models: Path, kind: str, nf4: bool) -> None:
    model = tiny.load_base(models, kind, nf4)
    outputs, before = tiny.logits(model), tiny.base_bytes(model)
    attached = attach(model, kind)
    assert attached.identity_at_init and torch.equal(tiny.logits(attached.model), outputs)
    assert attached.trainable == (set() if kind == "bert" else {"lm_head.weight"})
    heads = tiny.heads(attached.model, kind)
    losses = tiny.train(attached.model, [*tiny.trained(attached.model, attached.trainable), *heads.values()], 8, 3e-2)
    assert losses[-1] < 0.98 * losses[0]
    after = tiny.base_bytes(attached.model)
    assert {n for n in before if before[n] != after[n]} == {*attached.trainable, *heads}


def test_the_output_layer_gets_weights_of_its_own(models: Path) -> None:
    model = tiny.load_base(models, "llama", dtype=torch.bfloat16)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    embedding = model.model.embed_tokens.weight.detach().clone()
    attached = attach(model, "llama")
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.float32 and model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings is False
    assert tiny.configs()["llama"].tie_word_embeddings is True
    with torch.no_grad():
        attached.model.lm_head.weight.add_(1)
    model.tie_weights()  # transformers calls this on saving and resizing
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    assert not torch.equal(model.lm_head.weight, embedding.float())


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layers_train_and_the_first_do_not(models: Path, kind: str, count: int) -> None:
    model = tiny.load_base(models, kind)
    before = tiny.base_bytes(model)
    attached = attach(model, kind, train_last_layers=count)
    blocks = "bert.encoder.layer." if kind == "bert" else "model.layers."
    chosen = tuple(f"{blocks}{i}." for i in range(3 - count, 3))
    follows = {"bert": {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}, "llama": {"model.norm.weight"}}[kind]
    output = {"lm_head.weight"} if kind == "llama" else set()
    assert attached.trainable == {n for n in before if n.startswith(chosen)} | follows | output
    heads = tiny.heads(attached.model, kind)
    tiny.train(attached.model, [*tiny.trained(attached.model, attached.trainable), *heads.values()])
    after = tiny.base_bytes(attached.model)
    changed = {n for n in before if before[n] != after[n]}
    assert changed <= attached.trainable | set(heads)
    assert all(any(n.startswith(block) for n in changed) for block in chosen)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_answers_bit_for_bit(models: Path, tmp_path: Path, kind: str, count: int) -> None:
    attached = trained(models, kind, train_last_layers=count)
    tiny.save(ADAPTER, attached.model, tmp_path, kind)
    heads = set(peft_folder.head_parameters(attached.model, tiny.TASKS[kind][2]))
    assert set(load_file(tmp_path / "head.safetensors")) == {*attached.trainable, *heads}
    base = tiny.load_base(models, kind)
    loaded = ADAPTER.load(base, tmp_path)
    assert torch.equal(tiny.logits(loaded), tiny.logits(attached.model))
    assert not any(p.requires_grad for p in loaded.parameters())
    if kind == "llama":
        assert torch.equal(base.model.embed_tokens.weight, tiny.load_base(models, kind).model.embed_tokens.weight)


@pytest.mark.parametrize(
    ("kind", "count", "nf4"),
    [("bert", 0, False), ("llama", 0, False), ("bert", 2, False), ("llama", 1, False), ("llama", 0, True)],
)
def test_the_loader_in_the_folder_is_enough(models: Path, tmp_path: Path, kind: str, count: int, nf4: bool) -> None:
    model = tiny.load_base(models, kind, nf4)
    if kind == "bert":
        model.config.id2label = {0: "it's bad", 1: 'so "so"', 2: "good"}
        model.config.label2id = {label: index for index, label in model.config.id2label.items()}
    attached = attach(model, kind, train_last_layers=count)
    heads = tiny.heads(attached.model, kind)
    tiny.train(attached.model, [*tiny.trained(attached.model, attached.trainable), *heads.values()])
    tiny.save(ADAPTER, attached.model, tmp_path, kind)
    assert len((tmp_path / LOADER).read_text().splitlines()) <= 15
    torch.save({**tiny.batch(), "expected": tiny.logits(attached.model)}, tmp_path / "expected.pt")
    printed = tiny.run_without_pefttool(f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from load_head import model
import torch
for module in model.modules():
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False  # bitsandbytes would compute in bfloat16 from here on
stored = torch.load({str(tmp_path / "expected.pt")!r})
expected = stored.pop("expected")
with torch.no_grad():
    logits = model(**stored).logits
logits = logits[stored["attention_mask"].bool()] if logits.ndim == 3 else logits
assert logits.shape == expected.shape
print(float((logits - expected).abs().max()))
print(model.config.id2label)
""").splitlines()
    assert float(printed[0]) <= 1e-5
    if kind == "bert":
        assert printed[1] == str(model.config.id2label)


def test_a_tasks_own_model_brings_its_own_loader(models: Path, tmp_path: Path) -> None:
    for index, (cls, expected) in enumerate([(MeanPooled, None), (WithLoader, "# rebuilds the head of ")]):
        model = cls(tiny.load_base(models, "bert").bert, tiny.CLASSES)
        model.plain_loader = getattr(model, "plain_loader", None) if cls is WithLoader else None
        attach(model, "bert")
        tiny.save(ADAPTER, model, tmp_path / str(index), "bert")
        assert (tmp_path / str(index) / LOADER).exists() == (expected is not None)
        if expected is not None:
            assert (tmp_path / str(index) / LOADER).read_text().startswith(expected)


def test_merged_it_is_a_plain_model_that_transformers_saves_and_loads(models: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    attached = trained(models, "llama")
    expected = tiny.logits(attached.model)
    merged = ADAPTER.merge(attached.model)
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(tiny.logits(again), expected, atol=1e-6, rtol=0)
    attach(merged, "llama")


def test_a_second_attach_is_refused(models: Path) -> None:
    model = tiny.load_base(models, "bert")
    attach(model, "bert")
    with pytest.raises(UsageError, match="already carries 'head'"):
        attach(model, "bert")


def test_it_says_beforehand_where_it_cannot_work(models: Path) -> None:
    facts = tiny.known(tiny.load_base(models, "bert"), "bert")

    def problem(count: int, **changes: Any) -> str:
        (found,) = ADAPTER.check(HeadOptions(train_last_layers=count), replace(facts, **changes))
        return str(found)

    assert problem(4).startswith("adapter.train_last_layers: 4:") and "1 to 3" in problem(4)
    assert "'nf4'" in problem(1, quantizer="nf4")
    assert "no repeated blocks" in problem(1, layers=())
    assert problem(0, head_modules=()).startswith("adapter.name:")
    assert ADAPTER.check(HeadOptions(), replace(facts, quantizer="nf4")) == []


@pytest.mark.parametrize("damage", ["shape", "name", "missing"])
def test_a_folder_that_does_not_fit_is_one_line(models: Path, tmp_path: Path, damage: str) -> None:
    tensors = {"shape": {"lm_head.weight": torch.zeros(7, 32)}, "name": {"head.weight": torch.zeros(101, 32)}}
    if damage in tensors:
        peft_folder.write_tensors(tmp_path / "head.safetensors", tensors[damage])
    model = tiny.load_base(models, "llama")
    with pytest.raises(ModelError, match=r"head\.safetensors") as caught:
        ADAPTER.load(model, tmp_path)
    assert "\n" not in str(caught.value)
    attach(model, "llama")  # nothing was half done


def test_works_on_a_model_without_data() -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny.configs()["llama"])
    attached = ADAPTER.attach(model, HeadOptions(), tiny.known(model, "llama", abstract=True))
    assert [n for n, p in attached.model.named_parameters() if p.requires_grad] == ["lm_head.weight"]


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_trains_in_float32_beside_a_bfloat16_base(models: Path, kind: str) -> None:
    model = tiny.load_base(models, kind, dtype=torch.bfloat16)
    for module in tiny.TASKS[kind][2]:
        model.get_submodule(module).float()  # as the core does with a new head
    attached = attach(model, kind, train_last_layers=1)
    heads = tiny.heads(attached.model, kind)
    found = tiny.gradients_in_bfloat16(attached.model)
    assert len(found) == len(attached.trainable) + len(heads)
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert all(g.isfinite().all() for g in found.values())


def test_it_is_found_through_its_entry_point(registry: Any) -> None:
    assert isinstance(registry.adapters["head"], HeadAdapter)
    assert registry.adapters["head"].frozen_backbone
