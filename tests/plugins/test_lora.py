"""LoRA: identity at first, the base untouched, plain peft loads it, the merged model answers alike."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
from pydantic import ValidationError

from pefttool import NotMergeable, UsageError
from pefttool.setup import attach as core
from pefttool_lora.adapter import LoraAdapter
from pefttool_lora.options import LoraOptions, resolve, unmatched

BASES = [("bert", False), ("llama", False), ("bert", True), ("llama", True), ("gpt2", False)]
IDS = ["bert", "llama", "bert-nf4", "llama-nf4", "gpt2"]
ADAPTER = LoraAdapter()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.store(tmp_path_factory.mktemp("models"))


def attach(model: Any, kind: str, nf4: bool = False, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    facts = tiny.known(model, kind, quantizer="nf4" if nf4 else None)
    assert ADAPTER.check(LoraOptions(**options), facts) == []
    return ADAPTER.attach(model, LoraOptions(**options), facts)


def trained(models: Path, kind: str, nf4: bool = False, **options: Any) -> Any:
    attached = attach(tiny.load_base(models, kind, nf4), kind, nf4, **options)
    heads = tiny.heads(attached.model, kind)
    tiny.train(attached.model, [*tiny.trained(attached.model, attached.trainable), *heads.values()])
    return attached


@pytest.mark.parametrize(("kind", "nf4"), BASES, ids=IDS)
def test_starts_as_the_base_and_leaves_its_bytes_alone(models: Path, kind: str, nf4: bool) -> None:
    model = tiny.load_base(models, kind, nf4)
    outputs, before = tiny.logits(model), tiny.base_bytes(model)
    attached = attach(model, kind, nf4)
    assert attached.identity_at_init
    assert torch.equal(tiny.logits(attached.model), outputs)
    heads = tiny.heads(attached.model, kind)
    losses = tiny.train(attached.model, [*tiny.trained(attached.model, attached.trainable), *heads.values()])
    assert losses[-1] < 0.9 * losses[0]
    assert (tiny.logits(attached.model) - outputs).abs().max() > 1e-2
    after = tiny.base_bytes(attached.model)
    assert {name for name in before if before[name] != after[name]} == set(heads)
    with ADAPTER.disabled(attached.model):
        without = tiny.logits(attached.model)
    if not heads:  # the head trains in place
        assert torch.equal(without, outputs)


@pytest.mark.parametrize(("kind", "nf4"), BASES, ids=IDS)
def test_after_training_the_base_can_be_looked_at_as_it_was(models: Path, kind: str, nf4: bool) -> None:
    """Head included; and what was learnt is there again afterwards, also after an error."""
    model = tiny.load_base(models, kind, nf4)
    outputs = tiny.logits(model)
    facts = tiny.known(model, kind, quantizer="nf4" if nf4 else None)
    adapted = core.attach(model, ADAPTER, LoraOptions(), facts)
    untrained = {name: adapted.parameters()[name].detach().clone() for name in adapted.head}
    tiny.train(adapted.model, list(adapted.parameters().values()))
    learnt = tiny.logits(adapted.model)
    assert not torch.equal(learnt, outputs)
    with core.without(adapted, ADAPTER, untrained):
        assert torch.equal(tiny.logits(adapted.model), outputs)
    with pytest.raises(KeyError), core.without(adapted, ADAPTER, untrained):
        raise KeyError
    assert torch.equal(tiny.logits(adapted.model), learnt)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exactly_a_and_b_train_in_float32(models: Path, dtype: torch.dtype) -> None:
    attached = attach(tiny.load_base(models, "llama", dtype=dtype), "llama", r=3)
    training = {n: p for n, p in attached.model.named_parameters() if p.requires_grad}
    assert training.keys() == attached.trainable
    assert len(training) == 2 * 7 * 3
    assert all(".lora_A." in n or ".lora_B." in n for n in training)
    assert {p.dtype for p in training.values()} == {torch.float32}
    assert {min(p.shape) for p in training.values()} == {3}


@pytest.mark.parametrize(("kind", "nf4"), BASES, ids=IDS)
def test_saved_and_loaded_it_answers_bit_for_bit(models: Path, tmp_path: Path, kind: str, nf4: bool) -> None:
    attached = trained(models, kind, nf4)
    tiny.save(ADAPTER, attached.model, tmp_path, kind)
    loaded = ADAPTER.load(tiny.load_base(models, kind, nf4), tmp_path)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(tiny.logits(loaded), tiny.logits(attached.model))


@pytest.mark.parametrize(("kind", "nf4"), [BASES[i] for i in (0, 1, 3, 4)], ids=[IDS[i] for i in (0, 1, 3, 4)])
def test_plain_peft_loads_adapter_and_head(models: Path, tmp_path: Path, kind: str, nf4: bool) -> None:
    attached = trained(models, kind, nf4, use_rslora=True)
    tiny.save(ADAPTER, attached.model, tmp_path, kind)
    torch.save({**tiny.batch(), "expected": tiny.logits(attached.model)}, tmp_path / "expected.pt")
    quantised = "load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_compute_dtype=torch.float32"
    arguments = f", quantization_config=transformers.BitsAndBytesConfig({quantised})" if nf4 else ""
    difference = tiny.run_without_pefttool(f"""
import torch, transformers, peft
model = transformers.{tiny.TASKS[kind][0]}.from_pretrained({str(models / kind)!r}, dtype=torch.float32{arguments})
for module in model.modules():
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False  # bitsandbytes would compute in bfloat16 from here on
model = peft.PeftModel.from_pretrained(model, {str(tmp_path)!r}).eval()
stored = torch.load({str(tmp_path / "expected.pt")!r})
expected = stored.pop("expected")
with torch.no_grad():
    logits = model(**stored).logits
logits = logits[stored["attention_mask"].bool()] if logits.ndim == 3 else logits
assert logits.shape == expected.shape
print(float((logits - expected).abs().max()))
""")
    assert float(difference) <= 1e-5


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize(("kind", "nf4"), BASES, ids=IDS)
def test_merged_it_is_a_plain_model_that_answers_alike(models: Path, kind: str, nf4: bool, use_dora: bool) -> None:
    attached = trained(models, kind, nf4, use_dora=use_dora)
    expected = tiny.logits(attached.model)
    merged = ADAPTER.merge(attached.model)
    assert type(merged) is type(tiny.load_base(models, kind))
    assert {type(p) for p in merged.parameters()} == {torch.nn.Parameter}
    assert {n for n, _ in merged.named_parameters()} == {n for n, _ in tiny.load_base(models, kind).named_parameters()}
    assert getattr(merged.config, "quantization_config", None) is None
    torch.testing.assert_close(tiny.logits(merged), expected, atol=1e-5, rtol=0)
    attach(merged, kind)  # a merged model is a base again


def test_an_int8_base_is_not_mergeable(models: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        models / "llama", dtype=torch.float32, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    attached = attach(model, "llama")
    with pytest.raises(NotMergeable, match="int8"):
        ADAPTER.merge(attached.model)
    assert tiny.logits(attached.model).isfinite().all()


def test_a_second_attach_is_refused(models: Path) -> None:
    model = tiny.load_base(models, "llama")
    facts = tiny.known(model, "llama")
    attached = ADAPTER.attach(model, LoraOptions(), facts)
    count = len(list(attached.model.parameters()))
    for again in (model, attached.model):
        with pytest.raises(UsageError, match="already carries 'lora'"):
            ADAPTER.attach(again, LoraOptions(), facts)
    assert len(list(attached.model.parameters())) == count


def test_the_seed_decides(models: Path) -> None:
    def first(seed: int) -> torch.Tensor:
        attached = attach(tiny.load_base(models, "llama"), "llama", seed=seed)
        return torch.cat([p.flatten() for p in tiny.trained(attached.model, attached.trainable)])

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_works_on_a_model_without_data(models: Path) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny.configs()["llama"])
    attached = ADAPTER.attach(model, LoraOptions(r=4), tiny.known(model, "llama", abstract=True))
    shapes = {tuple(p.shape) for p in attached.model.parameters() if p.requires_grad}
    assert shapes == {(4, 32), (4, 48), (32, 4), (16, 4), (48, 4)}


def test_works_around_a_head_of_the_tasks_own(models: Path, tmp_path: Path) -> None:
    from pefttool_text.pooling import MeanPooled

    def pooled() -> Any:
        torch.manual_seed(1)
        return MeanPooled(tiny.load_base(models, "bert").bert, tiny.CLASSES).eval()

    model = pooled()
    outputs = tiny.logits(model)
    attached = attach(model, "bert")
    assert torch.equal(tiny.logits(attached.model), outputs)
    heads = tiny.heads(attached.model, "bert")
    tiny.train(attached.model, [*tiny.trained(attached.model, attached.trainable), *heads.values()])
    tiny.save(ADAPTER, attached.model, tmp_path, "bert")
    assert torch.equal(tiny.logits(ADAPTER.load(pooled(), tmp_path)), tiny.logits(attached.model))


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("auto", 21),
        ("all-linear", 21),
        ("q_proj", 3),
        (["q_proj", "v_proj"], 6),
        (["mlp.up_proj"], 3),
        (["model.layers.1.self_attn.k_proj"], 1),
        (["*.layers.[12].*"], 14),
        (["*_proj"], 21),
        (["q_proj", "*.q_proj"], 3),
    ],
)
def test_target_modules(models: Path, given: Any, count: int) -> None:
    model = tiny.load_base(models, "llama")
    attached = attach(model, "llama", target_modules=given)
    assert len(attached.trainable) == 2 * count


def test_unknown_target_modules_are_all_named(models: Path) -> None:
    facts = tiny.known(tiny.load_base(models, "llama"), "llama")
    options = LoraOptions(target_modules=("q_prj", "v_proj", "lm_head"))
    problems = ADAPTER.check(options, facts)
    assert [p.key for p in problems] == ["adapter.target_modules"] * 2
    assert "'q_prj'" in problems[0].message and "did you mean 'q_proj'?" in problems[0].message
    assert "'lm_head'" in problems[1].message and "gate_proj" in problems[1].message
    assert resolve(options, facts) == [f"model.layers.{i}.self_attn.v_proj" for i in range(3)]
    assert "is empty" in unmatched(LoraOptions(target_modules=()), facts)[0].message
    assert ADAPTER.check(LoraOptions(), replace(facts, linear_modules=()))[0].key == "adapter.name"


@pytest.mark.parametrize("kind", ["Mamba", "Mamba2"])
def test_only_layers_that_mamba_calls_have_an_update(kind: str) -> None:
    """peft refuses some of the others, and an update of the rest would never be added."""
    import transformers

    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    if kind == "Mamba2":
        sizes |= {"num_heads": 4, "head_dim": 16, "n_groups": 2}
    config = getattr(transformers, f"{kind}Config")(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    (problem,) = ADAPTER.check(LoraOptions(target_modules="out_proj"), tiny.known(model, "llama"))
    assert "'out_proj' names no linear layer" in problem.message and "in_proj" in problem.message
    attached = attach(model, "llama")
    assert len(attached.trainable) == 2 * 2
    attached.model.train()(torch.tensor([[5, 6, 7, 8]])).logits.square().sum().backward()
    updates = [attached.model.get_parameter(name) for name in attached.trainable if ".lora_B." in name]
    assert all(b.grad is not None and bool(b.grad.abs().sum() > 0) for b in updates)


def test_the_scaling_is_two_unless_told(models: Path) -> None:
    from peft.tuners.lora import LoraLayer

    for options in ({"r": 3}, {"r": 5, "use_rslora": True}, {"r": 4, "lora_alpha": 8}):
        model = attach(tiny.load_base(models, "llama"), "llama", **options).model
        factors = {m.scaling["default"] for m in model.modules() if isinstance(m, LoraLayer)}
        assert [round(factor, 9) for factor in factors] == [2.0]


@pytest.mark.parametrize("bad", [{"r": 0}, {"lora_dropout": 1.0}, {"init_lora_weights": "pissa"}, {"rank": 4}])
def test_bad_options_are_refused(bad: dict[str, Any]) -> None:
    """PiSSA, OLoRA and LoftQ rewrite the base's weights, which this tool never does."""
    with pytest.raises(ValidationError):
        LoraOptions(**bad)


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
    assert isinstance(registry.adapters["lora"], LoraAdapter)


def test_plain_peft_is_told_which_text_a_token_of_a_question_belongs_to(models: Path, tmp_path: Path) -> None:
    """peft's own class for question answering drops `token_type_ids`."""
    import peft
    from transformers import AutoModelForQuestionAnswering

    model = AutoModelForQuestionAnswering.from_pretrained(models / "bert", num_labels=2).eval()
    base = copy.deepcopy(model)
    facts = replace(tiny.known(model, "bert"), head_modules=("qa_outputs",), peft_task_type="QUESTION_ANS")
    adapted = ADAPTER.attach(model, LoraOptions(), facts).model.eval()
    ADAPTER.save(adapted, tmp_path)
    inputs = tiny.batch()
    kinds = {"token_type_ids": inputs["attention_mask"].cumsum(1).gt(4).long() * inputs["attention_mask"]}
    plain = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    with torch.no_grad():
        answers = [found(**inputs, **kinds).start_logits for found in (adapted, plain)]
        other = adapted(**inputs).start_logits
    torch.testing.assert_close(*answers)
    assert not torch.allclose(answers[0], other, atol=1e-3)
