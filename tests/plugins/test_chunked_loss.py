"""The language models' loss without logits: the same figures for less memory, and who does not get it, and why."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
import transformers
from allocations import peak_bytes
from torch import Tensor, nn

from pefttool import Loss, Setting
from pefttool.data.encoding import Encoded
from pefttool.inference.evaluate import evaluate
from pefttool.inference.predictor import Predictor
from pefttool.nn import embedding_offload
from pefttool.setup.devices import Choice
from pefttool_full.adapter import FullAdapter
from pefttool_full.options import FullOptions
from pefttool_head.adapter import HeadAdapter
from pefttool_head.options import HeadOptions
from pefttool_kernels import sliced_cross_entropy
from pefttool_lora.adapter import LoraAdapter
from pefttool_lora.options import LoraOptions
from pefttool_prefix.adapter import PrefixAdapter
from pefttool_prefix.options import PrefixOptions
from pefttool_text import output_layer
from pefttool_text.batching import IGNORE
from pefttool_text.causal_lm import CausalLM
from pefttool_text.chat import Chat

TASK = CausalLM()
SETTING = Setting(TASK.Options())
ADAPTERS = {
    "lora": (LoraAdapter(), LoraOptions(r=4)),
    "prefix": (PrefixAdapter(), PrefixOptions(num_virtual_tokens=3)),
    "head": (HeadAdapter(), HeadOptions()),
    "full": (FullAdapter(), FullOptions()),
}
SMALL = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.store(tmp_path_factory.mktemp("models"))


def attach(model: Any, name: str) -> Any:
    torch.manual_seed(0)
    adapter, options = ADAPTERS[name]
    attached = adapter.attach(model, options, tiny.known(model, "llama"))
    with torch.no_grad():  # LoRA's B starts at zero, and A would get no gradient
        for parameter in tiny.trained(attached.model, attached.trainable):
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return attached


def batch() -> dict[str, Tensor]:
    """Rows of several lengths; a prompt in each, and one row with nothing to train."""
    inputs = tiny.batch(rows=4, tokens=13)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE)
    labels[:, :3] = IGNORE
    labels[2] = IGNORE
    return {**inputs, "labels": labels}


def from_logits(model: Any, data: dict[str, Tensor]) -> Tensor:
    """The loss as the definition has it."""
    logits = model(input_ids=data["input_ids"], attention_mask=data["attention_mask"], use_cache=False).logits
    kept = logits[:, :-1].flatten(0, 1).float()
    return nn.functional.cross_entropy(kept, data["labels"][:, 1:].flatten(), ignore_index=IGNORE, reduction="sum")


def gradients(loss: Tensor, attached: Any) -> dict[str, Tensor]:
    parameters = {n: p for n, p in attached.model.named_parameters() if n in attached.trainable}
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def chunked(model: Any, data: dict[str, Tensor]) -> Tensor:
    loss = output_layer.summed_loss(model, data)
    assert loss is not None
    return loss


@pytest.mark.parametrize("name", ["lora", "prefix"])
def test_loss_and_every_gradient_are_those_of_whole_logits(models: Path, name: str) -> None:
    attached = attach(tiny.load_base(models, "llama"), name)
    attached.model.train()
    data = batch()
    expected = from_logits(attached.model, data)
    loss = TASK.loss(attached.model, data, SETTING)
    assert int(loss.weight) == int((data["labels"] != IGNORE).sum())
    assert loss.sum.dtype == torch.float32
    assert float(loss.sum) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(loss.sum) == float(chunked(attached.model, data))
    truth = gradients(expected, attached)
    found = gradients(loss.sum, attached)
    assert set(found) == set(attached.trainable)
    for key, gradient in found.items():
        assert truth[key].any()
        assert (gradient - truth[key]).norm() <= 1e-5 * truth[key].norm(), key


@pytest.mark.parametrize("name", ["lora", "prefix"])
def test_under_autocast_gradients_are_no_further_from_the_truth(models: Path, name: str) -> None:
    """Over many batches: what bfloat16 does to so small a backbone differs by luck from one to the next."""
    attached = attach(tiny.load_base(models, "llama"), name)
    squares = {"ours": 0.0, "theirs": 0.0}
    for seed in range(40):
        torch.manual_seed(seed)
        ids = torch.randint(5, tiny.VOCABULARY, (2, 16))
        data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        truth = gradients(from_logits(attached.model, data), attached)
        with torch.autocast("cpu", torch.bfloat16):
            losses = {"ours": chunked(attached.model, data), "theirs": from_logits(attached.model, data)}
        for who, loss in losses.items():
            for key, gradient in gradients(loss, attached).items():
                squares[who] += float((gradient - truth[key]).norm() ** 2 / truth[key].norm() ** 2)
    assert squares["ours"] <= 1.1**2 * squares["theirs"]


@pytest.mark.parametrize("name", ["Qwen2", "Mistral", "Phi", "GPTNeoX", "GPT2", "OPT"])
def test_plain_architectures_take_it(name: str) -> None:
    sizes = {"word_embed_proj_dim": 32, "ffn_dim": 48} if name == "OPT" else {}
    config = getattr(transformers, f"{name}Config")(**SMALL, **sizes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    model.get_input_embeddings().weight.mul_(20)
    data = batch()
    assert float(chunked(model, data)) == pytest.approx(float(from_logits(model, data)), rel=1e-5)


def test_without_gradients_a_model_that_is_not_frozen_takes_it_too(models: Path) -> None:
    model = tiny.load_base(models, "llama")
    assert output_layer.summed_loss(model, batch()) is None
    with torch.no_grad():
        assert float(chunked(model, batch())) == pytest.approx(float(from_logits(model, batch())), rel=1e-5)
    with torch.inference_mode():
        assert float(chunked(model, batch())) == pytest.approx(float(from_logits(model, batch())), rel=1e-5)


def test_an_output_bias_counts() -> None:
    config = transformers.PhiConfig(**SMALL)
    torch.manual_seed(0)
    model = transformers.PhiForCausalLM(config).requires_grad_(False)
    model.lm_head.bias.normal_(0, 3)
    assert float(chunked(model, batch())) == pytest.approx(float(from_logits(model, batch())), rel=1e-5)


CHANGING = {
    "Gemma2": {"final_logit_softcapping": 5.0, "head_dim": 8},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
}


@pytest.mark.parametrize("name", list(CHANGING))
def test_capped_and_scaled_logits_are_computed_and_it_says_so_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    config = getattr(transformers, f"{name}Config")(**SMALL, **CHANGING[name])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    model.get_input_embeddings().weight.mul_(20)
    with caplog.at_level(logging.WARNING):
        losses = [TASK.loss(model, batch(), SETTING) for _ in range(3)]
    for loss in losses:
        assert float(loss.sum) == pytest.approx(float(from_logits(model, batch())), rel=1e-6)
    assert [r.getMessage() for r in caplog.records] == [
        "the loss needs whole logits, and memory for them: the model changes its logits after the output layer (a"
        " scale, a soft cap)"
    ]


@pytest.mark.parametrize("name", ["head", "full"])
def test_an_output_layer_that_trains_gets_its_gradient(
    models: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    attached = attach(tiny.load_base(models, "llama"), name)
    with caplog.at_level(logging.WARNING):
        loss = TASK.loss(attached.model, batch(), SETTING).sum
    expected = gradients(from_logits(attached.model, batch()), attached)
    found = gradients(loss, attached)
    assert any(attached.model.get_output_embeddings().weight is p for p in attached.model.parameters())
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-5)
    assert ["the output layer trains" in r.getMessage() for r in caplog.records] == [True]


class InPlace(transformers.LlamaForCausalLM):
    """Scales its logits where they lie."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = super().forward(*arguments, **options)
        output.logits.mul_(2)
        return output


class Twice(transformers.LlamaForCausalLM):
    """Multiplies by its output layer twice."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        super().forward(*arguments, **options)
        return super().forward(*arguments, **options)


def with_a_hook(model: Any) -> Any:
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + 1)
    return model


def with_another_forward(model: Any) -> Any:
    model.lm_head.forward = lambda x: nn.functional.linear(x, model.lm_head.weight) * 3
    return model


def with_an_adapter_on_the_output_layer(model: Any) -> Any:
    import peft

    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"], r=2)
    return peft.get_peft_model(model, config)


UNSUITABLE = {
    "in place": (InPlace, lambda model: model, "changes its logits"),
    "twice": (Twice, lambda model: model, "calls its output layer 2 times"),
    "hook": (transformers.LlamaForCausalLM, with_a_hook, "hooks of its own"),
    "forward": (transformers.LlamaForCausalLM, with_another_forward, "hooks of its own"),
    "adapter": (transformers.LlamaForCausalLM, with_an_adapter_on_the_output_layer, "not a plain linear"),
}


@pytest.mark.parametrize("case", list(UNSUITABLE))
def test_whatever_is_not_plain_is_noticed(case: str, caplog: pytest.LogCaptureFixture) -> None:
    made, change, reason = UNSUITABLE[case]
    torch.manual_seed(0)
    model = change(made(transformers.LlamaConfig(**SMALL)).requires_grad_(False))
    assert output_layer.summed_loss(model, batch()) is None
    assert [reason in r.getMessage() for r in caplog.records] == [True]
    loss: Loss = TASK.loss(model, batch(), SETTING)
    assert float(loss.sum.detach()) == pytest.approx(float(from_logits(model, batch()).detach()), rel=1e-6)


def test_the_model_is_as_before(models: Path) -> None:
    """No hook stays, neither after an ordinary call nor after one that fails; logits and random state are the same."""
    model = tiny.load_base(models, "llama").requires_grad_(False)
    before = model(**tiny.batch()).logits
    torch.manual_seed(5)
    state = torch.get_rng_state()
    chunked(model, batch())
    assert torch.equal(torch.get_rng_state(), state)
    broken = {**batch(), "attention_mask": torch.ones(4, 3, 2, 1, 1)}
    with pytest.raises(Exception):  # noqa: B017 - whatever transformers raises
        output_layer.summed_loss(model, broken)
    assert not model.lm_head._forward_hooks and not model.lm_head._forward_pre_hooks
    assert torch.equal(model(**tiny.batch()).logits, before)


def test_dropout_draws_as_it_would_have(models: Path) -> None:
    """Asking the model what it does with its logits is a pass of its own: it must not shift what training draws."""
    attached = attach(tiny.load_base(models, "llama"), "lora")
    attached.model.train()
    for layer in attached.model.base_model.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    torch.manual_seed(11)
    first = float(chunked(attached.model, batch()))
    torch.manual_seed(11)
    again = float(from_logits(attached.model, batch()))
    torch.manual_seed(12)
    other = float(from_logits(attached.model, batch()))
    assert first == pytest.approx(again, rel=1e-5)
    assert first != pytest.approx(other, rel=1e-3)


def test_beneath_a_wrapper_for_several_processes(models: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, **inputs: Tensor) -> Any:
            return self.module(**inputs)

    model = tiny.load_base(models, "llama").requires_grad_(False)
    assert float(chunked(Wrapper(model), batch())) == float(chunked(model, batch()))


def test_a_training_step_takes_less_memory() -> None:
    config = transformers.LlamaConfig(**{**SMALL, "vocab_size": 40_000, "max_position_embeddings": 512})
    torch.manual_seed(0)
    attached = attach(transformers.LlamaForCausalLM(config).to(torch.bfloat16), "lora")
    ids = torch.randint(5, 40_000, (2, 512))
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    chunked(attached.model, data)  # asks the model first what it does with its logits

    def step(loss: Any) -> int:
        return peak_bytes(lambda: gradients(loss(attached.model, data), attached))

    logits = ids.numel() * config.vocab_size * 2
    assert step(chunked) < logits < step(from_logits)
    assert step(chunked) < step(from_logits) / 4


def test_evaluation_and_generation_are_as_before(models: Path) -> None:
    attached = attach(tiny.load_base(models, "llama"), "lora")
    setting = Setting(TASK.Options(), generation={"max_new_tokens": 5, "do_sample": False})
    data = batch()
    examples = [{key: values[row].tolist() for key, values in data.items()} for row in range(4)]

    class Padding:
        pad_token_id = eos_token_id = 0

    choice = Choice(device="cpu", dtype="float32", autocast=None, grad_scaler=False, reason="")
    rows: list[Any] = [None] * 4
    metrics, _ = evaluate(
        Predictor(attached.model, Chat(), Padding(), setting, choice),
        Encoded(tuple(examples), tuple(rows), ()),
        [[0, 1], [3, 2]],
    )
    mean = float(from_logits(attached.model, data).detach()) / int((data["labels"] != IGNORE).sum())
    assert metrics["loss"] == pytest.approx(mean, rel=1e-5)
    generate = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    before = tiny.load_base(models, "llama").generate(**tiny.batch(1), **generate)
    with ADAPTERS["lora"][0].disabled(attached.model):
        assert torch.equal(attached.model.generate(**tiny.batch(1), **generate), before)


@pytest.mark.parametrize("name", ["lora", "prefix"])
def test_an_output_layer_in_host_memory_comes_in_slices(models: Path, name: str, monkeypatch: Any) -> None:
    """The same loss and gradients; the whole logits are made in slices too, where they are wanted."""
    data = batch()
    attached = attach(tiny.load_base(models, "llama"), name)
    expected = TASK.loss(attached.model.train(), data, SETTING)
    truth = gradients(expected.sum, attached)
    model = tiny.load_base(models, "llama")
    embedding_offload.install(model)
    monkeypatch.setattr(embedding_offload, "SLICE", 30)
    monkeypatch.setattr(sliced_cross_entropy, "SLICE_BYTES", 1)
    attached = attach(model, name)
    whole = from_logits(attached.model.train(), data)
    TASK.loss(attached.model, data, SETTING)  # asks, once, what the model does with its logits
    with monkeypatch.context() as context:  # not by way of the layer itself
        context.setattr(embedding_offload, "_slices", lambda weight, x: pytest.fail("whole") if x.numel() else iter(()))
        loss = TASK.loss(attached.model, data, SETTING)
    assert float(loss.sum) == pytest.approx(float(expected.sum), rel=1e-5)
    assert float(whole) == pytest.approx(float(expected.sum), rel=1e-5)
    for found in (gradients(loss.sum, attached), gradients(whole, attached)):
        for key, gradient in truth.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-5)
