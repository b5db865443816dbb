"""The loss, and a whole training step, on a GPU: ours against what people run today. Needs peft and transformers."""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from gpu_record import statistics
from torch import Tensor, nn

from pefttool_kernels import backends, modules
from pefttool_kernels.cross_entropy import linear_cross_entropy
from pefttool_kernels.timing import measure

#: What people run; the same with our products; and with our loss, too: what `pefttool run` does.
LIBRARY, PRODUCTS, OURS = "bitsandbytes + peft", "pefttool, plain loss", "pefttool"
RANK, LORA_ALPHA = 16, 32
LEARNING_RATE = 1e-4
WARM_UP = 3
LABEL = 22  # width of the table's first column
MIB = 1 << 20
#: The contestants take turns this many times, each with a fresh model: clocks drift while a card gets warm.
TURNS = 2

Loss = Callable[[Any, Tensor], Tensor]


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
    loss: float  # of the last step: both see the same model and tokens

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.times["median"] * 1000

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


def build(shape: Shape, ours: bool, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A Llama of random weights, its linear layers quantised, under peft's LoRA; the adapter is float32."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    from pefttool_kernels import lora

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


def plain_loss(model: Any, ids: Tensor) -> Tensor:
    """The model's own."""
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


def chunked_loss(model: Any, ids: Tensor) -> Tensor:
    """The same figure, without the logits."""
    causal = model.get_base_model()
    hidden = causal.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    return linear_cross_entropy(hidden.flatten(0, 1), causal.lm_head.weight, ids[:, 1:].flatten(), reduction="mean")


def train(
    model: nn.Module, loss_of: Loss, tokens: int, steps: int, device: torch.device, dtype: torch.dtype
) -> tuple[list[float], float]:
    """(milliseconds of each step, the last loss): forward, backward, AdamW; the first WARM_UP steps are not counted."""
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    times, loss = [], torch.zeros(())
    for _ in range(WARM_UP + steps):
        began = time.perf_counter()
        with torch.autocast(device.type, dtype):
            loss = loss_of(model, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - began) * 1000)
    return times[WARM_UP:], float(loss.detach())


def _release(device: torch.device) -> None:
    """Give back what the last model took, the shared workspace too: each contestant pays for its own."""
    gc.collect()
    backends._workspaces.clear()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _peak(device: torch.device) -> int | None:
    """The most bytes that tensors took since this was last asked; unknown on the CPU."""
    if device.type != "cuda":
        return None
    most: int = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return most


def run(shape: Shape, tokens: Sequence[int], steps: int, device: torch.device, dtype: torch.dtype) -> Iterator[Step]:
    """Every contestant's steps with each number of tokens, on the same random model, which only one holds at a time."""
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    known: dict[tuple[str, int], tuple[int | None, float]] = {}
    for _ in range(TURNS):
        for contestant in (LIBRARY, PRODUCTS, OURS):
            _release(device)
            model = build(shape, contestant != LIBRARY, device, dtype)
            loss_of = chunked_loss if contestant == OURS else plain_loss
            for count in tokens:
                _peak(device)
                own, loss = train(model, loss_of, count, steps, device, dtype)
                times[contestant, count] += own
                known[contestant, count] = _peak(device), loss
            del model
    for (contestant, count), values in times.items():
        yield Step(contestant, count, statistics(values), *known[contestant, count])


def header() -> str:
    """The names of the columns of `line`."""
    return f"{'':{LABEL}}{'tokens':>8}{'step ms':>10}{'p10':>9}{'p90':>9}{'tokens/s':>10}{'peak MiB':>10}{'loss':>9}"


def line(step: Step) -> str:
    times, peak = step.times, "-" if step.peak_bytes is None else f"{step.peak_bytes / MIB:.0f}"
    figures = f"{times['median']:>10.1f}{times['p10']:>9.1f}{times['p90']:>9.1f}{step.tokens_per_second:>10.0f}"
    return f"{step.contestant:<{LABEL}}{step.tokens:>8}{figures}{peak:>10}{step.loss:>9.4f}"
