"""The loss, and a whole training step, on a GPU: ours against what people run today. Needs peft and transformers."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from gpu_record import statistics
from torch import Tensor, nn

from pefttool_kernels import measure, modules

OURS, LIBRARY = "pefttool", "bitsandbytes + peft"
RANK, LORA_ALPHA = 16, 32
LEARNING_RATE = 1e-4
WARM_UP = 3
#: The contestants take turns this many times, each with a fresh model: clocks drift while a card gets warm.
TURNS = 2


@dataclass(frozen=True)
class Shape:
    """A Llama of a few layers; the sizes of Llama-3.1-8B's, but for the vocabulary, unless it is told otherwise."""

    layers: int = 4
    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    key_value_heads: int = 8
    vocabulary: int = 32768
    kind: str = "nf4"


@dataclass(frozen=True)
class Step:
    """One contestant's training steps with `tokens` tokens each: milliseconds a step, and the peak of memory."""

    contestant: str
    tokens: int
    times: dict[str, float]
    peak_bytes: int | None
    loss: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.times["median"] * 1000

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


def build(shape: Shape, ours: bool, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A Llama of random weights, its linear layers quantised, under peft's LoRA; the adapter is float32."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            model.model.set_submodule(name, measure.quantised(shape.kind, module.weight.data))
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = shape.kind != "int8", shape.kind == "int8"
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if ours:
        modules.fuse(model)
    adapted: nn.Module = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    if ours:
        lora.fuse(adapted)
    return adapted.train()


def train(model: nn.Module, tokens: int, steps: int, device: torch.device, dtype: torch.dtype) -> tuple[list[float], float]:
    """(milliseconds of each step, the last loss): forward, backward, AdamW; the first WARM_UP steps are not counted."""
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    times, loss = [], torch.zeros(())
    for _ in range(WARM_UP + steps):
        began = time.perf_counter()
        with torch.autocast(device.type, dtype):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - began) * 1000)
    return times[WARM_UP:], float(loss.detach())


def run(
    shape: Shape, tokens: Sequence[int], steps: int, device: torch.device, dtype: torch.dtype
) -> Iterator[Step]:
    """Ours and bitsandbytes + peft, with each number of tokens, on the same random model."""
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    peaks: dict[tuple[str, int], int | None] = {}
    losses: dict[tuple[str, int], float] = {}
    for _ in range(TURNS):
        for contestant in (LIBRARY, OURS):
            model = build(shape, contestant == OURS, device, dtype)
            for count in tokens:
                reset_peak(device)
                own, losses[contestant, count] = train(model, count, steps, device, dtype)
                times[contestant, count] += own
                peaks[contestant, count] = peak(device)
            del model
            gc.collect()
            ...
    for (contestant, count), values in times.items():
        yield Step(contestant, count, statistics(values), peaks[contestant, count], losses[contestant, count])
