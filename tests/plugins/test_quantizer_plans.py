"""Options of a quantizer before any step: what a plan counts, and what it and the loading refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import case_models
import pytest
import torch
import transformers
from frozen_runs import store_model
from quantized_models import FLAT, quantised, rewritten
from terminal import Terminal
from torch import nn

from pefttool.api.errors import ModelError, Refused
from pefttool.config import recipe
from pefttool.config.registry import Registry
from pefttool.forecast import budget, simulate
from pefttool.setup import base, devices, plan
from pefttool.testing.models import model_folder
from pefttool_kernels import backends

# -- bases that are stored so already


def planned(registry: Registry, model: Path, *overrides: str, quantize: Any = None, dtype: str = "bfloat16") -> Any:
    document = {
        "model": str(model),
        "adapter": "lora",
        "task": "causal-lm",
        "quantize": quantize,
        "device": "cpu",
        "dtype": dtype,
        "train": {"sequence_length": 64},
    }
    return plan.make(recipe.resolve(recipe.combine(document, {}, overrides), registry, data_optional=True), registry)


@pytest.mark.parametrize(("name", "double_quant"), [("chatml-nf4-some", False), ("chatml-nf4", True)])
def test_a_stored_base_is_taken_as_it_is_or_refused(name: str, double_quant: bool, registry: Registry) -> None:
    folder = case_models.folder(name)
    made = planned(registry, folder)
    assert made.recipe.quantize is None and made.quantization.options.double_quant is double_quant
    for asked in ("nf4", {"name": "nf4", "double_quant": double_quant}):
        made = planned(registry, folder, quantize=asked)
        assert made.recipe.as_document()["quantize"] == {
            "name": "nf4",
            "backend": "auto",
            "double_quant": double_quant,
        }
        again = recipe.resolve(made.recipe.as_document(), registry, data_optional=True)
        assert plan.make(again, registry).recipe.as_document() == made.recipe.as_document()
    with pytest.raises(Refused, match=f"quantize.double_quant: {not double_quant} is not allowed") as refused:
        planned(registry, folder, quantize={"name": "nf4", "double_quant": not double_quant})
    (line,) = refused.value.complaints
    assert f"expected {double_quant}: " in line and "is stored so already: drop it, or give the 16-bit model" in line
    made = planned(registry, folder, quantize={"name": "nf4", "backend": "bitsandbytes"})
    layers = quantised(base.load(made, ()).model)
    assert layers and {layer.backend for layer in layers.values()} == {"bitsandbytes"}


def test_the_threshold_of_a_stored_base_is_the_default(registry: Registry, tmp_path: Path) -> None:
    folder = shutil.copytree(case_models.folder("chatml-int8"), tmp_path / "int8")
    how = json.loads((folder / "config.json").read_text())["quantization_config"]
    rewritten(folder / "config.json", quantization_config={**how, "llm_int8_threshold": 4.5})
    assert planned(registry, folder, quantize="int8").quantization.options.threshold == 4.5
    asked = planned(registry, folder, "quantize.threshold=2", quantize="int8")
    model = base.load(asked, ()).model
    assert {layer.state.threshold for layer in quantised(model).values()} == {2.0}


# -- what multiplies


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_a_backend_that_is_asked_for_multiplies_everywhere(
    name: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    for table in (backends._FORWARD, backends._BACKWARD):
        for backend, function in list(table.items()):

            def counted(*arguments: Any, backend: str = backend, function: Any = function) -> Any:
                called.append(backend)
                return function(*arguments)

            monkeypatch.setitem(table, backend, counted)
    found = {}
    for backend in ("auto", "tiles", "bitsandbytes"):
        made = planned(registry, model_folder("decoder"), f"quantize.backend={backend}", quantize=name, dtype="float32")
        model = base.load(made, ()).model
        called.clear()
        embedded = model.get_input_embeddings()(torch.arange(4, 40)[None]).detach().requires_grad_(True)
        logits = model(inputs_embeds=embedded).logits
        logits.square().sum().backward()
        assert set(called) == {"tiles" if backend == "auto" else backend}
        assert len(called) == 2 * len(quantised(model))
        found[backend] = (logits.detach(), embedded.grad)
    for values, expected in zip(found["tiles"], found["auto"], strict=True):
        assert values.equal(expected)
    for values, expected in zip(found["bitsandbytes"], found["auto"], strict=True):
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "backend", "dtype", "why"),
    [
        ("nf4", "triton", "bfloat16", "it runs on a GPU, the tensors are on the CPU; choose tiles"),
        ("int8", "dequantize", "bfloat16", "it runs on a GPU, the tensors are on the CPU; choose tiles"),
        ("nf4", "native", "float32", "; choose tiles, bitsandbytes"),
        ("int8", "native", "bfloat16", "; choose tiles, bitsandbytes"),
    ],
)
def test_a_backend_that_cannot_run_here_is_refused_by_the_plan(
    name: str, backend: str, dtype: str, why: str, registry: Registry
) -> None:
    with pytest.raises(Refused) as refused:
        planned(registry, model_folder("decoder"), f"quantize.backend={backend}", quantize=name, dtype=dtype)
    (line,) = refused.value.complaints
    assert line.startswith(f"quantize: backend {backend!r} cannot compute this product: ") and why in line


def test_a_backend_is_refused_for_a_shape_that_it_cannot_take(registry: Registry, tmp_path: Path) -> None:
    """Rows of 96 weights: by the simulation from the config alone, and where the weights are loaded."""
    folder = store_model("llama", tmp_path / "llama")
    made = planned(registry, folder, "quantize.backend=tiles", quantize="nf4", dtype="float32")
    for attempt in (lambda: simulate.peak(made, made.setting(), 1, 16), lambda: base.load(made, ())):
        with pytest.raises(ModelError, match=r"quantize: backend 'tiles' .*in_features 96 is not a multiple of 64"):
            attempt()
    simulate.peak(planned(registry, folder, quantize="nf4", dtype="float32"), made.setting(), 1, 16)


def test_a_backend_of_a_card_is_planned_for_on_paper(registry: Registry) -> None:
    """No driver is asked; what no card can do is refused all the same."""
    card = devices.imagined("cuda:8GiB", devices.DeviceFacts())[0]
    document = {"model": str(model_folder("decoder")), "adapter": "lora", "task": "causal-lm", "device": "cuda"}

    def made(backend: str) -> plan.Plan:
        given = {**document, "quantize": {"name": "nf4", "backend": backend}}
        return plan.make(recipe.resolve(given, registry, data_optional=True), registry, machine=card)

    assert made("triton").quantization is not None and made("dequantize").quantization is not None
    with pytest.raises(Refused, match="backend 'tiles' cannot compute this product: it runs on the CPU"):
        made("tiles")


# -- what is planned


def test_a_plan_counts_the_scales(registry: Registry) -> None:
    """Without double quantisation a scale of 64 weights takes 4 bytes instead of 1, and the tables of scales go."""
    weights = {}
    for double_quant in (True, False):
        made = planned(registry, model_folder("decoder"), quantize={"name": "nf4", "double_quant": double_quant})
        weights[double_quant] = simulate.peak(made, made.setting(), 1, 16).parts["weights"]
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder("decoder"))
    layers = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    blocks = [-(-layer.weight.numel() // 64) for layer in layers]
    more = sum(4 * count - (count + 4 * -(-count // 256) + 4 * 256 + 4) for count in blocks)
    assert layers and weights[False] - weights[True] == more


def test_the_budgets_ladder_keeps_the_options(registry: Registry) -> None:
    made = planned(registry, model_folder("decoder"), "train.batch_size=8", quantize=FLAT)
    roomy = budget.fit(made, 1 << 40)
    tight = budget.fit(made, roomy.total_bytes - 1)
    assert tight.plan.recipe.as_document() != roomy.plan.recipe.as_document()
    for found in (roomy, tight):
        assert found.plan.quantization == made.quantization
        assert found.plan.recipe.as_document()["quantize"] == {**FLAT, "backend": "auto"}


# -- on the command line


def test_the_command_line_takes_and_shows_them(terminal: Terminal, registry: Registry) -> None:
    terminal.allow(*(p.name for p in registry.plugins.loaded))
    given = ("recipe", "--adapter", "lora", "--model", "m", "--data", "d.jsonl", "--task", "chat")
    expected = "quantize:\n  name: nf4\n  backend: auto\n  double_quant: false\n"
    for spelling in (
        ("--quantize", "nf4", "-o", "quantize.double_quant=false"),
        ("-o", "quantize=nf4", "-o", "quantize.double_quant=false"),
        ("-o", "quantize={name: nf4, double_quant: false}"),
    ):
        code, out, err = terminal.run(*given, *spelling)
        assert code == 0 and expected in out, err
    assert "\nquantize: null\n" in terminal.run(*given)[1]
    code, _, err = terminal.run(*given, "--quantize", "nf4", "-o", "quantize.double_qant=false")
    assert code == 2 and len(err) == 1
    assert "quantize.double_qant: unknown key: did you mean 'double_quant'?" in err[0]
    code, _, err = terminal.run(*given, "--quantize", "nf4", "-o", "quantize.double_quant=maybe")
    assert code == 2 and len(err) == 1 and "quantize.double_quant: 'maybe' is not allowed: expected " in err[0]
    shown = terminal.run("quantizers", "show", "nf4")[1]
    assert "double_quant" in shown and "options in recipes" not in shown
