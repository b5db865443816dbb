"""A prefix inside the attention function: the same as peft's where peft can, and on every architecture where not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
from architectures import ARCHITECTURES, OTHERS, text
from torch import Tensor

from pefttool import Facts, ModelError
from pefttool.models import facts
from pefttool.nn import attention, attention_modules, attention_prefix, gradient_checkpointing
from pefttool.toolkit import peft_folder
from pefttool_prefix.adapter import PrefixAdapter
from pefttool_prefix.options import PrefixOptions, chosen
from pefttool_prefix.through_attention import KeyValuePrefix

ADAPTER = PrefixAdapter()


class Any_:
    """As much of a task as `facts.inspect` asks."""

    name, generative, peft_task_type = "any", False, None

    def unused(self, model: Any) -> tuple[str, ...]:
        return ()

    def left_alone(self, model: Any) -> tuple[str, ...]:
        return ()

    def head_modules(self, model: Any) -> tuple[str, ...]:
        return ()


def known(model: Any, **more: Any) -> Facts:
    return facts.inspect(model, Any_(), **more)  # type: ignore[arg-type]


def adapted(kind: str, seed: int = 1, count: int = 3) -> Any:
    model = ARCHITECTURES[kind].build()
    options, found = PrefixOptions(num_virtual_tokens=count, init="random"), known(model)
    assert ADAPTER.check(options, found) == []
    torch.manual_seed(seed)
    return ADAPTER.attach(model, options, found)


def outputs(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Everything that a head says of these inputs, in one row of numbers, padding left out."""
    out = model(**inputs)
    said = [out[name] for name in ("logits", "prediction_logits", "pred_boxes") if name in out]
    mask = inputs.get("attention_mask")
    if mask is not None and "decoder_input_ids" not in inputs and said[0].ndim == 3:
        said = [said[0][mask.bool()]]
    return torch.cat([part.flatten() for part in said])


def gradients(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    out = outputs(model, inputs)
    (out * torch.linspace(0.5, 1.5, len(out))).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return out.detach(), found


def slow(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
    """The truth, in plain sight: float64, one softmax over the prefix and what the mask lets through."""
    shape = (len(key), *module.key_value_prefix.key.shape)
    first, second = (getattr(module.key_value_prefix, kind).expand(shape).double() for kind in ("key", "value"))
    groups, scale = query.shape[1] // key.shape[1], options.get("scaling") or query.shape[-1] ** -0.5
    keys, values = (
        torch.cat([a, b.double()], 2).repeat_interleave(groups, 1) for a, b in ((first, key), (second, value))
    )
    scores = query.double() @ keys.transpose(2, 3) * scale
    own = scores[..., first.shape[2] :]
    bias = options.get("position_bias")
    own += 0 if bias is None else bias
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if mask is not None:
        own += torch.where(mask, 0.0, float("-inf")) if mask.dtype == torch.bool else mask
    elif causal:
        own += torch.full(own.shape[2:], float("-inf")).triu(own.shape[3] - own.shape[2] + 1)
    return (scores.softmax(-1) @ values).to(query.dtype).transpose(1, 2), None


def test_the_slow_truth_is_registered_apart() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("slow", slow)
    AttentionMaskInterface.register("slow", sdpa_mask)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_attends_to_its_prefix(kind: str) -> None:
    """Outputs and gradients are those of the slow truth; every part of the prefix has a gradient; switched off, the
    base answers."""
    test_the_slow_truth_is_registered_apart()
    base = outputs(ARCHITECTURES[kind].build(), ARCHITECTURES[kind].inputs()).detach()
    attached, inputs = adapted(kind), ARCHITECTURES[kind].inputs()
    model = attached.model
    assert {n for n, p in model.named_parameters() if p.requires_grad} == attached.trainable
    out, found = gradients(model, inputs)
    assert found.keys() == attached.trainable
    assert all(float(gradient.norm()) > 0 for gradient in found.values())
    assert (out - base).norm() > 1e-2 * base.norm()
    with ADAPTER.disabled(model):
        close = 1e-5 * float(base.abs().max())
        torch.testing.assert_close(outputs(model, inputs).detach(), base, atol=close, rtol=1e-4)
    model.set_attn_implementation("slow")
    truth, gradients_of_truth = gradients(model, inputs)
    scale = float(truth.abs().max())
    torch.testing.assert_close(out, truth, atol=1e-5 * scale, rtol=1e-4)
    largest = max(float(gradient.norm()) for gradient in gradients_of_truth.values())
    for name, gradient in gradients_of_truth.items():
        assert float((found[name] - gradient).norm()) <= 1e-4 * largest, name
    with torch.no_grad():  # without gradients the function takes other ways
        model.set_attn_implementation(attention.NAME)
        torch.testing.assert_close(outputs(model, inputs), truth, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in ("albert", "patchtst")])
def test_blocks_that_compute_again_see_it_again(kind: str, reentrant: bool) -> None:
    inputs = ARCHITECTURES[kind].inputs()
    if ARCHITECTURES[kind].generates:
        inputs["use_cache"] = False
    model = adapted(kind).model.train()
    out, found = gradients(model, inputs)
    gradient_checkpointing.install(model, reentrant)
    again, gradients_again = gradients(model, inputs)
    assert out.equal(again)
    assert found.keys() == gradients_again.keys()
    # The reentrant way adds what several decoder blocks have to say to the encoder in another order.
    several = reentrant and kind in ("t5", "bart", "whisper", "detr")
    for name, gradient in found.items():
        off = float((gradient - gradients_again[name]).norm())
        assert off <= (1e-5 * float(gradient.norm()) if several else 0.0), name


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_it_is_pefts_prefix(tmp_path: Path, kind: str, side: str) -> None:
    """One seed, both ways: the same start, outputs and gradients."""
    models = tiny.store(tmp_path)
    inputs = tiny.batch()
    if side == "left":
        inputs = {name: value.flip(1) for name, value in inputs.items()}
    results = {}
    for way in ("peft", "attention"):
        model = tiny.load_base(models, kind)
        torch.manual_seed(3)
        options = PrefixOptions(implementation=way, num_virtual_tokens=4, init="random")
        attached = ADAPTER.attach(model, options, tiny.known(model, kind))
        parameters = [dict(attached.model.named_parameters())[name] for name in attached.trainable]
        attached.model.eval()
        logits = attached.model(**inputs).logits
        logits = logits[inputs["attention_mask"].bool()] if logits.ndim == 3 else logits
        (logits * torch.linspace(0.5, 1.5, logits.shape[-1])).sum().backward()
        if way == "peft":
            ((start, gradient),) = [(p.detach(), p.grad) for p in parameters]
        else:
            held = [m for m in attached.model.modules() if isinstance(m, KeyValuePrefix)]
            parts = [part for prefix in held for part in (prefix.key, prefix.value)]
            start, gradient = (
                torch.cat([kind.transpose(0, 1).flatten(1) for kind in kinds], 1)
                for kinds in ([p.detach() for p in parts], [p.grad for p in parts])
            )
        results[way] = (start, logits.detach(), gradient)
    assert results["peft"][0].equal(results["attention"][0])
    for first, second in zip(*results.values(), strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "bart", "t5", "whisper"])
def test_generation_with_a_cache_is_generation_without(kind: str) -> None:
    model, inputs = adapted(kind).model, ARCHITECTURES[kind].inputs()
    if kind in ("llama", "gpt2", "mistral"):
        inputs = {name: value.flip(1) for name, value in inputs.items()}
    inputs.pop("decoder_input_ids", None)
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    found = [model.generate(**inputs, **how, use_cache=cached) for cached in (True, False)]
    assert found[0].equal(found[1])
    with ADAPTER.disabled(model):
        assert model.generate(**inputs, **how).equal(ARCHITECTURES[kind].build().generate(**inputs, **how))


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "mistral", "whisper", "dinov2"])
def test_saved_and_loaded_it_answers_bit_for_bit(kind: str, tmp_path: Path) -> None:
    attached, inputs = adapted(kind), ARCHITECTURES[kind].inputs()
    ADAPTER.save(attached.model, tmp_path)
    loaded = ADAPTER.load(ARCHITECTURES[kind].build(), tmp_path)
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training
    with torch.no_grad():
        assert outputs(loaded, inputs).equal(outputs(attached.model, inputs))
    files = ["load_prefix.py", "prefix.safetensors", "prefix_config.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == files


def test_transformers_alone_loads_prefix_and_head(tmp_path: Path) -> None:
    """A decoder whose positions are shifted, generating; an encoder with a new head; cross-attention."""
    code = "import runpy, torch\n"
    for kind in ("llama", "distilbert", "bart"):
        ARCHITECTURES[kind].build().save_pretrained(tmp_path / kind)
        base = type(ARCHITECTURES[kind].build()).from_pretrained(tmp_path / kind)
        options, found = PrefixOptions(implementation="attention"), known(base)
        torch.manual_seed(1)
        model = ADAPTER.attach(base, options, found).model.eval()
        ADAPTER.save(model, tmp_path / f"{kind}-adapter")
        if kind == "distilbert":
            with torch.no_grad():
                model.classifier.weight.add_(1)
            head = {n: p.detach() for n, p in model.named_parameters() if n.startswith("classifier")}
            peft_folder.write_head(tmp_path / f"{kind}-adapter", head, ["classifier"])
        inputs = ARCHITECTURES[kind].inputs()
        with torch.no_grad():
            said = [outputs(model, inputs)]
        if kind == "llama":
            said.append(model.generate(input_ids=inputs["input_ids"][:1], max_new_tokens=5, do_sample=False))
        torch.save((inputs, said), tmp_path / f"{kind}.pt")
        code += f"""
model = runpy.run_path({str(tmp_path / f"{kind}-adapter" / "load_prefix.py")!r})["model"]
inputs, said = torch.load({str(tmp_path / f"{kind}.pt")!r})
with torch.no_grad():
    logits = model(**inputs).logits
if {kind!r} == "llama":
    logits = logits[inputs["attention_mask"].bool()]
    assert model.generate(input_ids=inputs["input_ids"][:1], max_new_tokens=5, do_sample=False).equal(said[1])
torch.testing.assert_close(logits.flatten(), said[0], atol=1e-4, rtol=1e-4)
"""
    tiny.run_without_pefttool(code)


def test_a_damaged_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    ADAPTER.save(adapted("distilbert").model, tmp_path)
    with pytest.raises(ModelError, match="has no place of its shape in Dinov2"):
        ADAPTER.load(ARCHITECTURES["dinov2"].build(), tmp_path)
    config = tmp_path / "prefix_config.json"
    stored = json.loads(config.read_text())
    config.write_text(json.dumps({**stored, "modules": stored["modules"][:1]}))
    with pytest.raises(ModelError, match="does not hold what"):
        ADAPTER.load(ARCHITECTURES["distilbert"].build(), tmp_path)
    config.write_text("{}")
    with pytest.raises(ModelError, match="restore the adapter folder"):
        ADAPTER.load(ARCHITECTURES["distilbert"].build(), tmp_path)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_attention_is_refused_beforehand(kind: str) -> None:
    model = OTHERS[kind].build()
    found = known(model)
    assert found.key_values == () and attention_modules.fixed(model)
    (problem,) = ADAPTER.check(PrefixOptions(implementation="attention"), found)
    assert type(model).__name__ in problem.message and "use 'lora'" in problem.message


def test_auto_is_peft_where_it_can() -> None:
    able = Facts("X", key_values=known(ARCHITECTURES["bert"].build()).key_values, key_value_cache=True)
    able = replace(able, peft_task_type="SEQ_CLS")
    settings = {"none": {}, "recomputes": {"recomputes": True}, "packed": {"packed": True}}
    settings["no cache"] = {"key_value_cache": False}
    ways = {name: chosen(PrefixOptions(), replace(able, **more)) for name, more in settings.items()}
    assert ways == {"none": "peft", "recomputes": "attention", "packed": "attention", "no cache": "attention"}
    for name, more in settings.items():
        assert ADAPTER.check(PrefixOptions(), replace(able, **more)) == []
        assert ADAPTER.keeps_rows_apart(PrefixOptions(), replace(able, **more)) == (name != "none")
        assert bool(ADAPTER.check(PrefixOptions(implementation="peft"), replace(able, **more))) == (name != "none")


def test_positions_are_taken_only_where_they_are_shifted() -> None:
    assert ADAPTER.positions_taken(PrefixOptions(), known(ARCHITECTURES["distilbert"].build())) == 0
    shifted = known(ARCHITECTURES["llama"].build())
    assert ADAPTER.positions_taken(PrefixOptions(implementation="attention"), shifted) == 10


def test_keys_of_another_shape_are_refused() -> None:
    model = adapted("distilbert").model
    module = model.distilbert.transformer.layer[0].attention
    with pytest.raises(ValueError, match="DistilBertSelfAttention attends with keys"):
        attention_prefix.of(module, torch.zeros(1, 4, 5, 8))


@pytest.mark.parametrize("way", ["peft", "attention"])
def test_a_small_start_is_a_tenth_of_the_noise(tmp_path: Path, way: str) -> None:
    models = tiny.store(tmp_path)
    starts = []
    for init in ("random", "small"):
        model = tiny.load_base(models, "bert")
        torch.manual_seed(2)
        attached = ADAPTER.attach(model, PrefixOptions(implementation=way, init=init), tiny.known(model, "bert"))
        starts.append(tiny.trained(attached.model, attached.trainable))
    for noise, small in zip(*starts, strict=True):
        torch.testing.assert_close(small, noise * 0.1)


def test_layers_share_one_extended_mask() -> None:
    """Each would keep one of its own for the backward pass."""
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    prefix = (torch.zeros(4, 3, 8), torch.zeros(4, 3, 8))
    key = torch.zeros(2, 4, 5, 8)
    first, second = (attention_prefix.padded(prefix, 5, key, key, True, (mask, None))[2] for _ in range(2))
    assert first is second and first is not None and first.shape == (2, 1, 5, 8) and first.all()


def test_text_is_padded_for_free() -> None:
    """A row alone and among longer ones: the same answer, whichever way the function takes."""
    model, inputs = adapted("distilbert").model, text()
    together = model(**inputs).logits
    for row in range(3):
        length = int(inputs["attention_mask"][row].sum())
        alone = model(**{name: value[row : row + 1, :length] for name, value in inputs.items()}).logits
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)
