"""Every gradient of a LoRA step on SmolLM2's real weights: no further from the truth than bitsandbytes with peft.

The truth is computed in float64 from the very weights that are stored. Ours is evaluated before each step, which
must change nothing; the peer stays in training mode all along, for evaluating it rewrites its weights on some CPUs.

A gradient's error is the geometric mean over many batches: in a few of them some first layer's gradient is the small
difference of large terms, and which way of rounding comes closer there, by a factor, is luck.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import bitsandbytes
import peft
import pytest
import torch
import transformers
from torch import Tensor

from pefttool.config import registry
from pefttool.models import hub
from pefttool_kernels import lora, modules
from pefttool_kernels.layout import FourBitWeight
from pefttool_kernels.selftest import reference

CONFIGS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
    "int8": {"load_in_8bit": True},
}
ROWS, TOKENS = 1, 64
WORDS = 20_000  # characters of text, more than any test reads

Gradients = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder() -> Path:
    return hub.resolve("example:smollm2-135m-instruct", registry.build(only=["examples"]), weights=True).path


def quantised(folder: Path, kind: str, dtype: torch.dtype, depth: int) -> Any:
    options = {"bnb_4bit_compute_dtype": dtype} if kind != "int8" else {}
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        config=transformers.AutoConfig.from_pretrained(folder, num_hidden_layers=depth),
        quantization_config=transformers.BitsAndBytesConfig(
            **CONFIGS[kind], **options, llm_int8_skip_modules=["lm_head"]
        ),
        device_map={"": "cpu"},
    )


def dense(layer: Any) -> Tensor:
    """The float64 weights that a quantised layer stands for, without bitsandbytes' operators or ours."""
    weight = modules.view(layer)
    if isinstance(weight, FourBitWeight):
        return reference.dequantize_4bit(weight).double()
    return reference.dequantize_8bit(weight).double()


def exact(model: Any, folder: Path) -> Any:
    """A float64 model of the weights that `model` stores."""
    config = transformers.AutoConfig.from_pretrained(folder, num_hidden_layers=model.config.num_hidden_layers)
    truth = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    stored = dict(model.named_modules())
    kept = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for name, layer in stored.items():
        if isinstance(layer, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt):
            kept[f"{name}.weight"] = dense(layer)
    missing = truth.load_state_dict({name: kept[name].double() for name in truth.state_dict()})
    assert not missing.missing_keys and not missing.unexpected_keys
    return truth


def adapted(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    """LoRA on every linear layer of the backbone, A and B as if they had been trained for a while."""
    config = peft.LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear")
    model = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).mul_(0.02).to(dtype)
    return model.train()


def batches(folder: Path, count: int) -> list[Tensor]:
    """Real text, in rows: this library's own sources."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = Path(transformers.modeling_utils.__file__).read_text(encoding="utf-8")[:WORDS]
    ids = torch.tensor(tokenizer(text)["input_ids"])
    assert ids.numel() >= count * ROWS * TOKENS
    return list(ids[: count * ROWS * TOKENS].view(count, ROWS, TOKENS))


def step(model: Any, ids: Tensor) -> Gradients:
    model.zero_grad()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def evaluate(model: Any, ids: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        model(input_ids=ids[:1], use_cache=False)
    with torch.inference_mode():
        model.generate(ids[:1, :8], max_new_tokens=2, do_sample=False, pad_token_id=0)
    model.train()


def errors(model: Any, data: list[Tensor], truths: list[Gradients], evaluated: bool) -> dict[str, float]:
    """Each gradient tensor's relative error, the geometric mean over the batches."""
    logarithms: dict[str, float] = dict.fromkeys(truths[0], 0.0)
    for ids, truth in zip(data, truths, strict=True):
        if evaluated:
            evaluate(model, ids)
        found = step(model, ids)
        assert set(found) == set(truth)
        for name, gradient in found.items():
            logarithms[name] += math.log((gradient - truth[name]).norm() / truth[name].norm())
    return {name: math.exp(value / len(data)) for name, value in logarithms.items()}


def compare(folder: Path, kind: str, dtype: torch.dtype, depth: int, count: int) -> dict[str, tuple[float, float]]:
    """By gradient tensor: (our error, the peer's)."""
    model = quantised(folder, kind, dtype, depth)
    data = batches(folder, count)
    truth = adapted(exact(model, folder), torch.float64)
    truths = [step(truth, ids) for ids in data]
    del truth
    model = adapted(model)
    theirs = errors(model, data, truths, evaluated=False)
    layers = modules.fuse(model)
    assert len(layers) == len(lora.fuse(model)) == 7 * depth
    ours = errors(model, data, truths, evaluated=True)
    return {name: (ours[name], theirs[name]) for name in ours}


def assert_no_worse(found: dict[str, tuple[float, float]], depth: int) -> None:
    assert len(found) == 14 * depth
    worse = {name: (ours, theirs) for name, (ours, theirs) in found.items() if ours > 1.1 * theirs}
    assert not worse


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "nf4" else [pytest.mark.slow]) for kind in CONFIGS]
)
def test_every_gradient_of_the_first_layers_in_bfloat16(folder: Path, kind: str) -> None:
    assert_no_worse(compare(folder, kind, torch.bfloat16, depth=2, count=24), depth=2)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_every_gradient_of_the_first_layers_in_float32(folder: Path, kind: str) -> None:
    found = compare(folder, kind, torch.float32, depth=2, count=4)
    assert max(ours for ours, _ in found.values()) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_every_gradient_of_the_whole_model_in_bfloat16(folder: Path, kind: str) -> None:
    assert_no_worse(compare(folder, kind, torch.bfloat16, depth=30, count=32), depth=30)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_every_gradient_of_the_whole_model_in_float32(folder: Path, kind: str) -> None:
    found = compare(folder, kind, torch.float32, depth=30, count=6)
    assert max(ours for ours, _ in found.values()) <= 1e-5
