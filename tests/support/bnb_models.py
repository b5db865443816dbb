"""Tiny models for the bitsandbytes quantizers' tests, and what those compare."""

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from pefttool import Facts
from pefttool_bnb.eight_bit import Int8
from pefttool_bnb.four_bit import FP4, NF4
from pefttool_bnb.loading import bitsandbytes

bnb = bitsandbytes()
QUANTIZERS = {"nf4": NF4(), "fp4": FP4(), "int8": Int8()}
KINDS = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
needs_avx512_bf16 = pytest.mark.skipif(
    not bnb.functional.has_avx512bf16(), reason="bitsandbytes repacks on CPUs with AVX512-BF16 only"
)


def save_llama(folder, biases):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=biases,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zeros would survive any cast
            nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llama"), biases=True)


def bert_config():
    return BertConfig(
        vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_labels=3
    )


def facts(dtype="bfloat16", **others):
    known = {"linear_modules": ("model.layers.0.self_attn.q_proj",), "output_modules": ("lm_head",)}
    return Facts(architecture="LlamaForCausalLM", dtype=dtype, **{**known, **others})


def load(folder, name, dtype="bfloat16", auto=AutoModelForCausalLM, known=None, prepared=True, **options):
    quantizer = QUANTIZERS[name]
    chosen = quantizer.Options(**options)
    arguments = quantizer.load_arguments(chosen, known or facts(dtype))
    torch.manual_seed(1)
    model = auto.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True, **arguments)
    if prepared:
        quantizer.after_load(model, chosen)
    return model.eval()


def quantised(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}


def tensors(module):
    """Every tensor a quantised linear is made of."""
    weight = module.weight
    if isinstance(module, bnb.nn.Linear8bitLt):
        source = weight if weight.CB is not None else module.state
        held = {"weight": weight.data, "SCB": source.SCB}
    else:
        state = weight.quant_state
        held = {"weight": weight.data, "absmax": state.absmax, "code": state.code, "offset": state.offset}
        if state.nested:
            held |= {"nested absmax": state.state2.absmax, "nested code": state.state2.code}
    held["bias"] = module.bias
    return {name: tensor for name, tensor in held.items() if tensor is not None}


def base_bytes(model):
    """dtype, shape and bytes of everything frozen: quantised storage, and what is not quantised."""
    parts = {
        f"{name}.{part}": tensor
        for name, module in quantised(model).items()
        for part, tensor in tensors(module).items()
    }
    parts |= {name: p for name, p in model.named_parameters() if not p.requires_grad and name not in parts}
    return {
        name: (str(t.dtype), tuple(t.shape), t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in parts.items()
    }


def with_lora(model):
    torch.manual_seed(2)
    targets = ["q_proj", "v_proj", "down_proj", "query", "value", "dense"]
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
        if "lora_B" in name:  # zeros would hide the base's part in the gradient of A
            nn.init.normal_(parameter, std=0.05)
    return adapted


def train(model, evaluate, dtype="bfloat16", steps=3):
    """Gradients of each step of plain SGD; with `evaluate`, there is an evaluation before every step."""
    ids = torch.randint(0, 300, (2, 13), generator=torch.Generator().manual_seed(3))
    autocast = nullcontext() if dtype == "float32" else torch.autocast("cpu", dtype=getattr(torch, dtype))
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    history = []
    for _ in range(steps):
        if evaluate:
            model.eval()
            with torch.no_grad(), autocast:
                model(input_ids=ids[:, :7], use_cache=False)
        model.train()
        with autocast:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in trainable.items()}
        history.append(gradients)
        with torch.no_grad():
            for n, p in trainable.items():
                p -= 0.5 * gradients[n]
                p.grad = None
    return history


def same(first, second):
    return all(torch.equal(a[n], b[n]) for a, b in zip(first, second, strict=True) for n in a)


# -- the trap: an evaluation must leave the base and the gradients as they are
