"""Bases that are stored in fewer bits: read as bitsandbytes itself reads them, and trained as what we quantise."""

from __future__ import annotations

from typing import Any

import case_models
import pytest
import torch
from case_models import stored
from transformers import AutoModelForCausalLM

from pefttool import ModelError, UsageError
from pefttool.api.facts import Facts
from pefttool.api.values import Setting
from pefttool.config import registry
from pefttool.models import facts, prequantized
from pefttool.models.pretrained import LocalPretrained
from pefttool.models.quantization import Quantization
from pefttool.models.quantized import stored_by
from pefttool.setup import attach as core
from pefttool.setup.base import load_model
from pefttool.setup.loading import Loading
from pefttool.testing.tensors import content, storage, storage_bytes
from pefttool_bnb import loading
from pefttool_lora.adapter import LoraAdapter
from pefttool_lora.options import LoraOptions

KINDS = [name for name in stored.KINDS if name.startswith("chatml")]
TOKENS = torch.arange(4, 44).reshape(2, 20)
#: What quantises as these were: ours nests the scales.
SAME = {"chatml-nf4": "nf4", "chatml-int8": "int8"}


def loaded(name: str, dtype: str = "bfloat16", asked: str | None = None) -> tuple[Any, Quantization, Facts]:
    """(model, how it is stored, facts), as a run loads it."""
    everything = registry.build()
    task, folder = everything.tasks["chat"], case_models.folder(name)
    ours = Quantization.default(everything.quantizers[asked]) if asked else None
    how = prequantized.quantization(folder, name, ours, everything.quantizers.values())
    assert how is not None
    known = Facts(architecture="", dtype=dtype, output_modules=("lm_head",), quantizer=how.name)
    read = load_model(Loading(folder, task, Setting(task.Options()), how, known, "cpu", dtype))
    model, missing = read.model, read.missing
    assert not missing
    return model, how, facts.inspect(model, task, seed=3, dtype=dtype, quantizer=how.name)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_what_bitsandbytes_reads(name: str) -> None:
    """Layer by layer: the same are quantised, to the same weights; the plan's stand-ins have their size."""
    model, how, known = loaded(name)
    quantizer = how.quantizer
    library = loading.bitsandbytes()
    plain = AutoModelForCausalLM.from_pretrained(case_models.folder(name), device_map={"": "cpu"})
    classes = (library.nn.Linear4bit, library.nn.Linear8bitLt)
    theirs = {n: m for n, m in plain.named_modules() if isinstance(m, classes)}
    task = registry.build().tasks["chat"]
    abstract = task.load(LocalPretrained(case_models.folder(name), abstract=True), Setting(task.Options())).model
    assert list(theirs) == list(stored_by(quantizer, abstract, known.linear_modules))
    assert len(theirs) == (10 if name == "chatml-nf4-some" else 14)
    for name, layer in theirs.items():
        ours = model.get_submodule(name)
        assert content(quantizer.dequantize(ours)) == content(quantizer.dequantize(layer))
        shape = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, dtype=torch.bfloat16)
        stand_in = how.skeleton(shape)
        assert storage_bytes(stand_in) == storage_bytes(ours)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", SAME)
def test_every_gradient_is_that_of_what_we_quantise(name: str, dtype: str) -> None:
    """With evaluations between the steps, after which the base is as it was, byte by byte."""
    found = []
    for source, asked in ((name, None), ("chatml", SAME[name])):
        model, _, known = loaded(source, dtype, asked)
        assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {getattr(torch, dtype)}
        adapted = core.attach(model, LoraAdapter(), LoraOptions(), known)
        before = {n: content(t) for n, t in storage(adapted.model).items() if n in adapted.base}
        gradients = []
        for _ in range(3):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                adapted.model.eval()(input_ids=TOKENS, use_cache=False)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = adapted.model.train()(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
            loss.backward()
            gradients.append(content(loss))
            with torch.no_grad():
                for parameter in adapted.parameters().values():
                    assert parameter.grad is not None
                    gradients.append(content(parameter.grad))
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
        assert before and before == {n: content(t) for n, t in storage(adapted.model).items() if n in adapted.base}
        found.append(gradients)
    if dtype == "bfloat16":  # which it was stored from; a float32 run quantises other weights
        assert found[0] == found[1]


@pytest.mark.parametrize("method", stored.METHODS)
def test_other_methods_are_refused_by_name(method: str) -> None:
    everything = registry.build()
    with pytest.raises(ModelError, match=f"stored by '{method}'.*give the 16-bit model that it was made from"):
        prequantized.quantization(case_models.folder(f"stored-{method}"), "m", None, everything.quantizers.values())


def test_what_contradicts_it_is_refused() -> None:
    quantizers = registry.build().quantizers
    with pytest.raises(UsageError, match="'fp4' is not how m is stored, which is 'nf4' already"):
        prequantized.quantization(
            case_models.folder("chatml-nf4"), "m", Quantization.default(quantizers["fp4"]), quantizers.values()
        )
    again = prequantized.quantization(
        case_models.folder("chatml-nf4"), "m", Quantization.default(quantizers["nf4"]), quantizers.values()
    )
    assert again is not None and again.stored_already


def test_packed_in_another_dtype_is_refused() -> None:
    how = {**stored.KINDS["chatml-nf4"][1], "quant_method": "bitsandbytes", "bnb_4bit_quant_storage": "bfloat16"}
    with pytest.raises(ModelError, match="bnb_4bit_quant_storage='bfloat16'"):
        registry.build().quantizers["nf4"].of_stored(how, ())
