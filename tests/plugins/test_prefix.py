"""Prefix tuning: a sane start, generation that agrees with training, plain peft loads it, the base untouched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch

from pefttool import Facts, NotMergeable, UsageError
from pefttool.models import facts
from pefttool.toolkit import peft_folder
from pefttool_prefix import through_peft
from pefttool_prefix.adapter import PrefixAdapter
from pefttool_prefix.initialise import from_activations
from pefttool_prefix.options import PrefixOptions, chosen

BASES = [("bert", False), ("llama", False), ("bert", True), ("llama", True)]
IDS = ["bert", "llama", "bert-nf4", "llama-nf4"]
WAYS = ["peft", "attention"]
ADAPTER = PrefixAdapter()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.store(tmp_path_factory.mktemp("models"))


def attach(model: Any, kind: str, nf4: bool = False, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    known = tiny.known(model, kind, quantizer="nf4" if nf4 else None)
    assert ADAPTER.check(PrefixOptions(**options), known) == []
    return ADAPTER.attach(model, PrefixOptions(**options), known)


def trained(models: Path, kind: str, nf4: bool = False, **options: Any) -> Any:
    attached = attach(tiny.load_base(models, kind, nf4), kind, nf4, **options)
    heads = tiny.heads(attached.model, kind)
    parameters = [*tiny.trained(attached.model, attached.trainable), *heads.values()]
    return attached, tiny.train(attached.model, parameters, steps=8, rate=5e-2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "nf4"), BASES, ids=IDS)
def test_learns_and_leaves_the_bases_bytes_alone(models: Path, kind: str, nf4: bool, way: str) -> None:
    model = tiny.load_base(models, kind, nf4)
    before = tiny.base_bytes(model)
    attached = attach(model, kind, nf4, num_virtual_tokens=5, implementation=way)
    assert not attached.identity_at_init
    assert (attached.trainable == {"prompt_encoder.default.embedding.weight"}) == (way == "peft")
    heads = tiny.heads(attached.model, kind)
    training = {n for n, p in attached.model.named_parameters() if p.requires_grad}
    assert len(training) == (1 if way == "peft" else 3 * 2) + len(heads)
    prefix = tiny.trained(attached.model, attached.trainable)
    assert all(5 in part.shape and part.dtype == torch.float32 for part in prefix)
    assert sum(part.numel() for part in prefix) == 5 * 3 * 2 * (32 if kind == "bert" else 16)
    losses = tiny.train(attached.model, [*prefix, *heads.values()], steps=8, rate=5e-2)
    assert losses[-1] < losses[0] - 0.02
    after = tiny.base_bytes(attached.model)
    assert {name for name in before if before[name] != after[name]} == set(heads)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [1, 7])
def test_a_prefix_of_activations_is_a_prompt(models: Path, count: int, way: str) -> None:
    """The strongest check of layout and positions: the same tokens in front of the text give the same outputs."""
    model = tiny.load_base(models, "llama")
    torch.manual_seed(5)
    tokens = torch.randint(tiny.VOCABULARY, (1, count))
    tokens[0, 0] = model.config.bos_token_id
    inputs = tiny.batch()
    rows = len(inputs["input_ids"])
    prompted = {
        "input_ids": torch.cat([tokens.expand(rows, -1), inputs["input_ids"]], 1),
        "attention_mask": torch.cat([torch.ones(rows, count, dtype=torch.long), inputs["attention_mask"]], 1),
    }
    with torch.no_grad():
        expected = model(**prompted).logits[:, count:][inputs["attention_mask"].bool()]
    attached = attach(model, "llama", seed=5, num_virtual_tokens=count, implementation=way)
    torch.testing.assert_close(tiny.logits(attached.model), expected, atol=1e-5, rtol=0)


def test_a_prefix_of_activations_has_pefts_layout_on_an_encoder(models: Path) -> None:
    model = tiny.load_base(models, "bert")
    torch.manual_seed(2)
    prefix = through_peft.flat(from_activations(model, 4))
    assert prefix.shape == (4, 3 * 2 * 32) and prefix.dtype == torch.float32
    attached = attach(model, "bert", seed=2, num_virtual_tokens=4, init="activations")
    assert torch.equal(attached.model.prompt_encoder["default"].embedding.weight, prefix)


@pytest.mark.parametrize("way", WAYS)
def test_generation_sees_the_prefix_as_training_does(models: Path, way: str) -> None:
    """Greedy tokens of left-padded prompts equal the argmax of plain forward passes, step by step."""
    attached, _ = trained(models, "llama", implementation=way)
    model = attached.model
    prompts = [[9, 17, 23, 31, 40], [50, 61]]
    padded = {
        "input_ids": torch.tensor([prompts[0], [0, 0, 0, *prompts[1]]]),
        "attention_mask": torch.tensor([[1] * 5, [0, 0, 0, 1, 1]]),
    }
    with torch.no_grad():
        out = model.generate(**padded, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)[:, 5:]
        for row, prompt in enumerate(prompts):
            ids = list(prompt)
            for _ in range(6):
                scores = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0, -1]
                scores[model.config.eos_token_id] = -torch.inf  # as min_new_tokens does
                ids.append(int(scores.argmax()))
            assert out[row].tolist() == ids[len(prompt) :]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "nf4"), BASES, ids=IDS)
def test_saved_and_loaded_it_answers_bit_for_bit(models: Path, tmp_path: Path, kind: str, nf4: bool, way: str) -> None:
    attached, _ = trained(models, kind, nf4, implementation=way)
    tiny.save(ADAPTER, attached.model, tmp_path, kind)
    loaded = ADAPTER.load(tiny.load_base(models, kind, nf4), tmp_path)
    assert not any(p.requires_grad for p in loaded.parameters())
    expected, found = tiny.logits(attached.model), tiny.logits(loaded)
    if way == "peft":
        assert torch.equal(found, expected)
    else:  # what was trained inside attention is peft's to load, and to compute
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_both_ways_are_one_folder(models: Path, tmp_path: Path, kind: str) -> None:
    """From one seed, before training: the same files, whichever way it is computed."""
    for way in WAYS:
        adapted = attach(tiny.load_base(models, kind), kind, implementation=way, init="random").model
        tiny.save(ADAPTER, adapted, tmp_path / way, kind)
    files = [{file.name: file.read_bytes() for file in (tmp_path / way).iterdir()} for way in WAYS]
    assert files[0].keys() == files[1].keys() == {"adapter_config.json", "adapter_model.safetensors"}
    first, second = (json.loads(found["adapter_config.json"]) for found in files)
    # peft names heads that this model does not have, too.
    assert {**first, "modules_to_save": None} == {**second, "modules_to_save": None}
    tensors = [peft_folder.read_tensors(tmp_path / way / "adapter_model.safetensors") for way in WAYS]
    assert tensors[0].keys() == tensors[1].keys()
    new = ("classifier",)  # the head is drawn anew with every base
    assert all(tensors[0][n].equal(tensors[1][n]) for n in tensors[0] if not any(part in n for part in new))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_plain_peft_loads_adapter_and_head(models: Path, tmp_path: Path, kind: str, way: str) -> None:
    attached, _ = trained(models, kind, implementation=way)
    tiny.save(ADAPTER, attached.model, tmp_path, kind)
    torch.save({**tiny.batch(), "expected": tiny.logits(attached.model)}, tmp_path / "expected.pt")
    difference = tiny.run_without_pefttool(f"""
import torch, transformers, peft
model = transformers.{tiny.TASKS[kind][0]}.from_pretrained({str(models / kind)!r}, dtype=torch.float32)
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


@pytest.mark.parametrize(
    ("auto", "task_type", "head", "labels"),
    [
        ("AutoModelForTokenClassification", "TOKEN_CLS", "classifier", tiny.CLASSES),
        ("AutoModelForQuestionAnswering", "QUESTION_ANS", "qa_outputs", 2),
    ],
)
def test_plain_peft_loads_it_under_other_heads(
    models: Path, tmp_path: Path, auto: str, task_type: str, head: str, labels: int
) -> None:
    import transformers

    class Task(tiny.TinyTask):
        def head_modules(self, model: Any) -> tuple[str, ...]:
            return (head,)

    task = Task("bert")
    task.peft_task_type = task_type
    model = getattr(transformers, auto).from_pretrained(models / "bert", num_labels=labels)
    known = facts.inspect(model, task)  # type: ignore[arg-type]
    assert chosen(PrefixOptions(), known) == "peft"
    adapted = ADAPTER.attach(model, PrefixOptions(), known).model.eval()
    trained_head = peft_folder.head_parameters(adapted, [head])
    ADAPTER.save(adapted, tmp_path)
    peft_folder.write_head(tmp_path, {n: p.detach() for n, p in trained_head.items()}, [head])
    with torch.no_grad():
        torch.save({**tiny.batch(), "expected": adapted(**tiny.batch())[0]}, tmp_path / "expected.pt")
    difference = tiny.run_without_pefttool(f"""
import torch, transformers, peft
model = transformers.{auto}.from_pretrained({str(models / "bert")!r}, num_labels={labels})
model = peft.PeftModel.from_pretrained(model, {str(tmp_path)!r}).eval()
stored = torch.load({str(tmp_path / "expected.pt")!r})
expected = stored.pop("expected")
with torch.no_grad():
    print(float((model(**stored)[0] - expected).abs().max()))
""")
    assert float(difference) <= 1e-5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_switched_off_it_answers_as_the_base(models: Path, kind: str, way: str) -> None:
    model = tiny.load_base(models, kind)
    outputs = tiny.logits(model)
    adapted = attach(model, kind, implementation=way).model
    assert not torch.allclose(tiny.logits(adapted), outputs, atol=1e-2)
    inside = tiny.logits(adapted)
    prompt = {"input_ids": torch.tensor([[9, 17]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    generation = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with ADAPTER.disabled(adapted):
        assert torch.equal(tiny.logits(adapted), outputs)
        if kind == "llama":
            answer = adapted.generate(**prompt, **generation)
    assert torch.equal(tiny.logits(adapted), inside)
    if kind == "llama":
        assert torch.equal(answer, tiny.load_base(models, kind).generate(**prompt, **generation))
        assert adapted.generate(**prompt, **generation).shape == answer.shape


def test_it_says_beforehand_where_it_cannot_work(models: Path) -> None:
    able = tiny.known(tiny.load_base(models, "bert"), "bert")
    without_cache, chess = replace(able, key_value_cache=False), replace(able, peft_task_type=None, task="chess")
    for known, reason in ((without_cache, "past_key_values"), (chess, "task 'chess' is none of peft")):
        assert ADAPTER.check(PrefixOptions(), known) == []  # inside the attention function
        (problem,) = ADAPTER.check(PrefixOptions(implementation="peft"), known)
        assert problem.key == "adapter.implementation" and reason in problem.message
        (problem,) = ADAPTER.check(PrefixOptions(), replace(known, key_values=()))
        assert problem.key == "adapter.name" and reason in problem.message and "use 'lora'" in problem.message
        assert "AttentionInterface" in problem.message
    assert ADAPTER.check(PrefixOptions(), replace(able, key_values=())) == []
    (problem,) = ADAPTER.check(PrefixOptions(implementation="attention"), replace(able, key_values=()))
    assert problem.key == "adapter.implementation" and "use 'lora'" in problem.message


def test_gradient_checkpointing_is_refused(models: Path) -> None:
    model = tiny.load_base(models, "llama")
    model.gradient_checkpointing_enable()
    with pytest.raises(UsageError, match=r"train\.gradient_checkpointing"):
        attach(model, "llama", implementation="peft")
    model.gradient_checkpointing_disable()
    attach(model, "llama")  # the refusal left no claim behind


def test_a_head_that_peft_would_bypass_is_refused(models: Path) -> None:
    """peft would classify from BERT's pooler and never call the mean-pooling forward."""
    from pefttool_text.pooling import MeanPooled

    pooled = MeanPooled(tiny.load_base(models, "bert").bert, tiny.CLASSES)
    known = tiny.known(pooled, "bert")
    assert not known.key_value_cache
    with pytest.raises(UsageError, match="calls a head of its own instead of MeanPooled's"):
        ADAPTER.attach(pooled, PrefixOptions(implementation="peft"), known)
    before = pooled(**tiny.batch()).logits
    adapted = attach(pooled, "bert").model  # inside the attention function it is called
    assert not torch.allclose(adapted(**tiny.batch()).logits, before, atol=1e-3)


def test_it_cannot_be_merged_or_attached_twice(models: Path) -> None:
    model = tiny.load_base(models, "bert")
    adapted = attach(model, "bert").model
    with pytest.raises(NotMergeable, match="keys and values"):
        ADAPTER.merge(adapted)
    for again in (model, adapted):
        with pytest.raises(UsageError, match="already carries 'prefix'"):
            attach(again, "bert")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_seed_decides(models: Path, kind: str, way: str) -> None:
    def first(seed: int) -> torch.Tensor:
        attached = attach(tiny.load_base(models, kind), kind, seed=seed, implementation=way)
        return tiny.trained(attached.model, attached.trainable)[0]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


@pytest.mark.parametrize("way", WAYS)
def test_works_on_a_model_without_data(way: str) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny.configs()["llama"])
        attached = ADAPTER.attach(model, PrefixOptions(implementation=way), tiny.known(model, "llama", abstract=True))
    shapes = [tuple(p.shape) for p in attached.model.parameters() if p.requires_grad]
    assert shapes == ([(10, 3 * 2 * 2 * 8)] if way == "peft" else [(2, 10, 8)] * 6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_trains_in_float32_beside_a_bfloat16_base(models: Path, kind: str, way: str) -> None:
    model = tiny.load_base(models, kind, dtype=torch.bfloat16)
    for module in tiny.TASKS[kind][2]:
        model.get_submodule(module).float()  # as the core does with a new head
    attached = attach(model, kind, implementation=way)
    heads = tiny.heads(attached.model, kind)
    found = tiny.gradients_in_bfloat16(attached.model)
    assert len(found) == len(attached.trainable) + len(heads)
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert all(g.isfinite().all() for g in found.values())


def test_it_is_found_through_its_entry_point(registry: Any) -> None:
    assert isinstance(registry.adapters["prefix"], PrefixAdapter)


@pytest.mark.parametrize(("cache", "taken"), [(True, 10), (False, 0)])
def test_virtual_tokens_take_positions(cache: bool, taken: int) -> None:
    """They stand before the text, so a text of full length would run out of position embeddings."""
    known = Facts(architecture="Tiny", key_value_cache=cache, peft_task_type="SEQ_CLS", positions=64)
    assert PrefixAdapter().positions_taken(PrefixOptions(num_virtual_tokens=10), known) == taken
