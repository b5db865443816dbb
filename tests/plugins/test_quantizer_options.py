"""Options of a quantizer in whole runs: what is stored by them, delivered with them, and read back."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import bitsandbytes
import case_models
import pytest
import torch
import transformers
from finished_runs import Runs
from frozen_runs import fine_tune, store_model, write_rows
from peft import PeftModel
from quantized_models import FLAT, quantised, rewritten
from terminal import Terminal
from torch import nn

from pefttool import run
from pefttool.api.errors import Refused, UsageError
from pefttool.api.facts import Facts
from pefttool.api.values import Setting
from pefttool.config import yaml_text
from pefttool.config.registry import Registry
from pefttool.export import check, merge, reload
from pefttool.models.quantization import Quantization
from pefttool.runs import resuming
from pefttool.setup import streamed_base
from pefttool.setup.loading import Loading
from pefttool.testing import resumption
from pefttool.testing.models import model_folder

FACTS = Path("adapter") / "pefttool.json"


@pytest.fixture(scope="module")
def runs(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(registry, tmp_path_factory.mktemp("options"))


def stored_by_bitsandbytes(weight: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """(packed, state) of the library's own function: 4 bits, one float32 scale for 64 weights."""
    packed, state = bitsandbytes.functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=False, quant_type="nf4"
    )
    return packed, state


def outputs(model: Any) -> torch.Tensor:
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found.float()


# -- what a run stores, and what is delivered


def test_the_scales_are_what_bitsandbytes_stores_without_double_quantisation(runs: Runs, registry: Registry) -> None:
    flat, nested = (
        reload.open_folder(runs[name], registry, "cpu").base().model for name in ("lora-nf4-flat", "lora-nf4")
    )
    original = transformers.AutoModelForCausalLM.from_pretrained(runs.root / "llama")
    assert len(quantised(flat)) == 21 and quantised(flat).keys() == quantised(nested).keys()
    for name, layer in quantised(flat).items():
        packed, state = stored_by_bitsandbytes(original.get_submodule(name).weight.detach())
        assert layer.weight.data.equal(packed) and layer.weight.quant_state.absmax.equal(state.absmax)
        assert state.absmax.dtype == torch.float32
        other = quantised(nested)[name].weight.quant_state
        assert other.nested and other.absmax.dtype == torch.uint8 and other.absmax.shape == state.absmax.shape


def test_the_adapter_answers_on_the_weights_that_it_was_trained_on(
    runs: Runs, registry: Registry, tmp_path: Path
) -> None:
    """Against plain transformers and peft, on weights that bitsandbytes' own functions have rounded."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(runs.root / "llama")
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            rounded = bitsandbytes.functional.dequantize_4bit(*stored_by_bitsandbytes(module.weight.detach()))
            module.weight = nn.Parameter(rounded, requires_grad=False)
    expected = outputs(PeftModel.from_pretrained(plain, runs["lora-nf4-flat"] / "adapter"))
    ours = outputs(reload.reload(runs["lora-nf4-flat"], registry, "cpu").model)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)
    nested = runs.copy("lora-nf4-flat", tmp_path / "nested")
    rewritten(nested / FACTS, quantize_options=...)
    assert (outputs(reload.reload(nested, registry, "cpu").model) - expected).abs().max() > 1e-3

    done = merge.merge(runs["lora-nf4-flat"], registry, tmp_path / "merged", merge.Wanted(save_as="float32"))
    assert done.agreement.relative < 2e-5
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(outputs(merged), expected, atol=2e-5, rtol=0)
    facts = json.loads((tmp_path / "merged" / "pefttool.json").read_text())
    assert facts["quantize"] is None and facts["quantize_options"] is None
    assert facts["merged"]["quantize_options"] == {"backend": "auto", "double_quant": False}


def test_a_clean_process_and_an_evaluation_know_the_options(runs: Runs, registry: Registry, terminal: Terminal) -> None:
    found = check.check(runs["lora-nf4-flat"], registry, reload.Opening("cpu"), rows=3)
    assert isinstance(found.clean, check.Agreement) and found.clean.relative < 1e-4
    terminal.allow(*(p.name for p in registry.plugins.loaded))
    terminal.run("plugins")  # what the runs printed is read
    code, out, err = terminal.run("eval", str(runs["lora-nf4-flat"]), "--json")
    assert code == 0, err
    after = json.loads((runs["lora-nf4-flat"] / "metrics.json").read_text())["after"]
    assert json.loads(out)["loss"] == pytest.approx(after["loss"], rel=1e-6)


def test_a_streamed_run_is_the_resident_one(registry: Registry, tmp_path: Path) -> None:
    """To the last byte, and from a file of its own: the default's is another."""
    model, rows = model_folder("decoder"), write_rows(tmp_path, "causal-lm")
    left = {}
    for stream in (False, True):
        out = tmp_path / str(stream)
        fast = {"train__max_steps": 2, "train__learning_rate": 2e-2, "check": "none", "memory__stream": stream}
        fine_tune(registry, out, model, rows, "causal-lm", "lora", quantize=FLAT, **fast)
        left[stream] = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    assert left[True] == left[False]
    quantizer = registry.quantizers["nf4"]
    task, facts = registry.tasks["causal-lm"], Facts(architecture="")
    files = {
        streamed_base.file_for(
            Loading(model, task, Setting(None), Quantization(quantizer, options), facts, "cpu", "float32")
        )
        for options in (quantizer.Options(), quantizer.Options(double_quant=False), quantizer.Options(backend="tiles"))
    }
    assert len(files) == 3


# -- what was saved before quantizers took options


def test_an_adapter_that_was_saved_without_options_has_the_defaults(
    runs: Runs, registry: Registry, tmp_path: Path
) -> None:
    before = runs.copy("lora-nf4", tmp_path / "before")
    rewritten(before / FACTS, quantize_options=...)
    opened = reload.open_folder(before, registry, "cpu")
    assert opened.quantization is not None and opened.quantization.described() == [
        "nf4",
        {"backend": "auto", "double_quant": True},
    ]
    assert outputs(opened.model().model).equal(outputs(reload.reload(runs["lora-nf4"], registry, "cpu").model))
    merge.merge(before, registry, tmp_path / "merged")
    plain = runs.copy("lora", tmp_path / "plain")
    rewritten(plain / FACTS, quantize_options=...)
    assert reload.open_folder(plain, registry, "cpu").quantization is None


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"double_quant": 7}, r"quantize_options\.double_quant: 7 is not allowed"),
        ({"double": True}, r"quantize_options\.double: unknown key"),
        ("flat", r"'quantize_options': found .*'flat', expected dict or null"),
    ],
)
def test_damaged_options_are_one_line(stored: Any, words: str, runs: Runs, registry: Registry, tmp_path: Path) -> None:
    damaged = runs.copy("lora-nf4", tmp_path / "damaged")
    rewritten(damaged / FACTS, quantize_options=stored)
    with pytest.raises((Refused, UsageError), match=rf"pefttool\.json: {words}") as refused:
        reload.open_folder(damaged, registry, "cpu")
    assert "\n" not in str(refused.value)


def interrupted(registry: Registry, folder: Path, **options: Any) -> tuple[Path, Path]:
    """(a finished run of four steps, the same after its second), on a tiny model."""
    model = folder / "llama"
    if not model.is_dir():
        store_model("llama", model)
    steps = {"train__max_steps": 4, "train__checkpoint_every": 1, "train__keep_checkpoints": 9, "check": "none"}
    fine_tune(
        registry, folder / "whole", model, write_rows(folder, "causal-lm"), "causal-lm", "lora", **steps, **options
    )
    resumption.interrupt(folder / "whole", folder / "halved", 2)
    return folder / "whole", folder / "halved"


def goes_on(registry: Registry, folder: Path) -> bytes:
    found, resolved = resuming.find(folder, registry)
    run.run(resolved, registry, resume=found)
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def edited(folder: Path, quantize: Any) -> None:
    document = yaml_text.load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml_text.dump({**document, "quantize": quantize}))


def as_before(folder: Path) -> None:
    """The run folder as the version before wrote it: recipe and checkpoints name the quantizer alone."""
    edited(folder, "nf4")
    step = folder / "checkpoints" / "step-2"
    document = json.loads((step / "state.json").read_text())
    document["identity"]["recipe"]["quantize"] = "nf4"
    (step / "state.json").write_text(json.dumps(document))
    manifest = json.loads((step / "manifest.json").read_text())
    manifest["state.json"] = hashlib.sha256((step / "state.json").read_bytes()).hexdigest()
    (step / "manifest.json").write_text(json.dumps(manifest))
    mark = next(p for p in step.iterdir() if p.read_bytes() and p.stat().st_size == 64)
    mark.write_text(hashlib.sha256((step / "manifest.json").read_bytes()).hexdigest())


def test_a_run_with_options_goes_on_and_is_refused_with_others(registry: Registry, tmp_path: Path) -> None:
    whole, halved = interrupted(registry, tmp_path, quantize=FLAT)
    assert "quantize:\n  name: nf4\n  backend: auto\n  double_quant: false\n" in (halved / "recipe.yaml").read_text()
    other = shutil.copytree(halved, tmp_path / "other")
    edited(other, {**FLAT, "double_quant": True})
    with pytest.raises(Refused, match=r"recipe\.quantize\.double_quant: False then, True now") as refused:
        goes_on(registry, other)
    assert len(refused.value.complaints) == 2
    edited(other, "nf4")
    with pytest.raises(Refused, match=r"recipe\.quantize\.double_quant: False then, True now"):
        goes_on(registry, other)
    assert goes_on(registry, halved) == (whole / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_run_of_the_version_before_goes_on(registry: Registry, tmp_path: Path) -> None:
    whole, halved = interrupted(registry, tmp_path, quantize="nf4")
    as_before(halved)
    other, spelt_out = (shutil.copytree(halved, tmp_path / name) for name in ("other", "spelt out"))
    edited(other, FLAT)
    with pytest.raises(Refused, match=r"recipe\.quantize\.double_quant: True then, False now"):
        goes_on(registry, other)
    edited(other, "fp4")
    with pytest.raises(Refused, match=r"recipe\.quantize: 'nf4' then, "):
        goes_on(registry, other)
    expected = (whole / "adapter" / "adapter_model.safetensors").read_bytes()
    edited(spelt_out, {"name": "nf4", "double_quant": True})
    assert goes_on(registry, spelt_out) == expected
    assert goes_on(registry, halved) == expected


@pytest.mark.parametrize("name", ["chatml-nf4-some", "chatml-nf4"])
def test_a_run_of_the_version_before_on_a_stored_base_goes_on(name: str, registry: Registry, tmp_path: Path) -> None:
    """The name alone stood for what the folder holds, whichever of the two that is."""
    shutil.copytree(case_models.folder(name), tmp_path / "llama")
    whole, halved = interrupted(registry, tmp_path, quantize="nf4")
    as_before(halved)
    assert goes_on(registry, halved) == (whole / "adapter" / "adapter_model.safetensors").read_bytes()
