"""What trains is what was named, in every kind of model whose layers transformers 5 has rewritten.

By name against the modules that hold an update, and by value against plain peft, which reads the saved folder.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import case_models
import peft
import pytest
import torch
from case_models import experts, fused
from torch import nn
from transformers import AutoModelForCausalLM

from pefttool.api.facts import Facts
from pefttool.api.values import Setting
from pefttool.config import registry
from pefttool.models import facts
from pefttool.models.quantization import Quantization
from pefttool.setup import attach as core
from pefttool.setup.base import load_model
from pefttool.setup.loading import Loading
from pefttool.testing.tensors import content
from pefttool.toolkit import peft_targets
from pefttool_lora.adapter import LoraAdapter
from pefttool_lora.options import LoraOptions, resolve

KINDS = [*experts.KINDS, *fused.KINDS]
ADAPTER = LoraAdapter()
TOKENS = torch.arange(4, 44).reshape(2, 20)


def base(kind: str) -> Any:
    """The model in float32, as a run loads it."""
    task = registry.build().tasks["chat"]
    known = Facts(architecture="", device="cpu", dtype="float32")
    read = load_model(Loading(case_models.folder(kind), task, Setting(task.Options()), None, known, "cpu", "float32"))
    model, missing = read.model, read.missing
    assert not missing
    return model


def inspected(model: Any) -> Facts:
    return facts.inspect(model, registry.build().tasks["chat"], seed=3)


def answers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=TOKENS, use_cache=False).logits
    return logits


def linear_layers(model: Any) -> list[str]:
    """Worked out from the model alone: all linear layers but the output layer, routers, and what Mamba reads itself."""
    skipped = (".x_proj", ".dt_proj", ".out_proj") if hasattr(model.config, "mamba_d_conv") else ()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not model.get_output_embeddings()
        and not type(module).__name__.endswith("Router")
        and not (".mamba." in name and name.endswith(skipped))
    ]


def chosen(model: nn.Module, way: str) -> tuple[Any, list[str]]:
    """(`target_modules` as a user writes it, the names it means)."""
    names = linear_layers(model)
    if way == "auto":
        return way, names
    if way == "one":  # of a multilayer perceptron, where there is such a layer: what peft takes for experts
        name = next((n for n in names if n.endswith(("gate_proj", "w1", "up_proj"))), names[0])
        return (name,), [name]
    ending = names[-1].rpartition(".")[2]
    return ending, [name for name in names if name.endswith(f".{ending}")]


@pytest.mark.parametrize("way", ["auto", "one", "ending"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_trains_is_what_was_named(kind: str, way: str, tmp_path: Path) -> None:
    model = base(kind)
    untouched = answers(model)
    given, wanted = chosen(model, way)
    options = LoraOptions(target_modules=given, r=4)
    known = inspected(model)
    assert ADAPTER.check(options, known) == []
    assert resolve(options, known) == wanted
    if way == "auto":
        assert resolve(LoraOptions(target_modules="all-linear"), known) == wanted
    model_type = model.config.model_type
    adapted = core.attach(model, ADAPTER, options, known)
    assert model.config.model_type == model_type
    assert peft_targets.adapted(adapted.model) == tuple(wanted)
    holders = {name.partition(".lora_")[0] for name in adapted.trainable}
    assert holders == {f"base_model.model.{name}" for name in wanted}
    before = {name: content(parameter) for name, parameter in adapted.parameters().items()}
    step(adapted)
    step(adapted)  # A has no gradient before B is away from zero
    still = [name for name, parameter in adapted.parameters().items() if content(parameter) == before[name]]
    assert not still, "it was named, and did not train"
    expected = answers(adapted.model)
    assert (expected - untouched).abs().max() > 1e-3

    ADAPTER.save(adapted.model, tmp_path)
    again = ADAPTER.load(base(kind), tmp_path)
    assert content(answers(again)) == content(expected)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plain = peft.PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(case_models.folder(kind), dtype=torch.float32), tmp_path
        )
    assert not [w for w in caught if "adapter keys" in str(w.message) or "target" in str(w.message)]
    difference = (answers(plain) - expected).abs().max() / expected.abs().max()
    assert difference < 1e-5
    merged = ADAPTER.merge(again)
    assert (answers(merged) - expected).abs().max() / expected.abs().max() < 1e-5


def step(adapted: core.Adapted) -> None:
    """One step of gradient descent, large enough to be seen in the answers."""
    model = adapted.model.train()
    loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
    loss.backward()
    with torch.no_grad():
        for parameter in adapted.parameters().values():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad / (parameter.grad.norm() + 1e-12)
                parameter.grad = None


def test_experts_are_refused_with_what_they_are() -> None:
    known = inspected(base("deepseekv3"))
    for pattern in ("experts", "mlp.experts", "gate_up_proj", "*.experts.*", "model.layers.2.mlp.experts.down_proj"):
        (problem,) = ADAPTER.check(LoraOptions(target_modules=(pattern,)), known)
        assert "experts, whose weights are in tensors such as 'model.layers.1.mlp.experts." in problem.message
    assert known.expert_tensors == tuple(
        f"model.layers.{layer}.mlp.experts.{part}" for layer in (1, 2) for part in ("gate_up_proj", "down_proj")
    )


def test_dora_is_refused_where_no_file_could_say_it() -> None:
    known = inspected(base("deepseekv3"))
    (problem,) = ADAPTER.check(LoraOptions(use_dora=True), known)
    assert problem.key == "adapter.use_dora" and "`*.gate_proj`" in problem.message
    assert ADAPTER.check(LoraOptions(use_dora=True, target_modules="self_attn.*"), known)[0].key
    assert ADAPTER.check(LoraOptions(use_dora=True, target_modules="o_proj"), known) == []


def test_dropout_is_trained_with_and_left_out_of_the_file(tmp_path: Path) -> None:
    """peft refuses it beside weights that are named, and a trained adapter has no use for it."""
    model = base("deepseekv3")
    adapted = core.attach(model, ADAPTER, LoraOptions(lora_dropout=0.5), inspected(model))
    assert adapted.model.peft_config["default"].lora_dropout == 0.5
    ADAPTER.save(adapted.model, tmp_path)
    assert peft.PeftConfig.from_pretrained(tmp_path).lora_dropout == 0.0


@pytest.mark.parametrize("quantizer", ["nf4", "int8"])
def test_a_quantised_base_takes_the_same_layers(quantizer: str, tmp_path: Path) -> None:
    """And the saved folder is read onto it again, though plain peft reads it onto plain weights only."""
    task, chosen = registry.build().tasks["chat"], Quantization.default(registry.build().quantizers[quantizer])
    setting, folder = Setting(task.Options()), case_models.folder("deepseekv3")

    def quantised() -> tuple[Any, Facts]:
        known = Facts(architecture="", dtype="float32", output_modules=("lm_head",), quantizer=quantizer)
        model = load_model(Loading(folder, task, setting, chosen, known, "cpu", "float32")).model
        return model, facts.inspect(model, task, seed=3, quantizer=quantizer)

    model, known = quantised()
    adapted = core.attach(model, ADAPTER, LoraOptions(), known)
    assert peft_targets.adapted(adapted.model) == tuple(linear_layers(base("deepseekv3")))
    step(adapted)
    expected = answers(adapted.model)
    ADAPTER.save(adapted.model, tmp_path)
    assert content(answers(ADAPTER.load(quantised()[0], tmp_path))) == content(expected)
