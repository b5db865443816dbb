"""The real training loop on a tiny language model, packed or padded, with and without dropout."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor

from pefttool import Facts, Row, Setting
from pefttool.api import events
from pefttool.config.settings import TrainSettings
from pefttool.data.encoding import Encoded, Examples
from pefttool.nn import attention, cpu
from pefttool.setup import attach
from pefttool.setup.prepared import Prepared, Session
from pefttool.training import loop as train
from pefttool_lora.adapter import LoraAdapter
from pefttool_lora.options import LoraOptions
from pefttool_text.causal_lm import CausalLM
from pefttool_text.language_model import counted

CONFIG = transformers.LlamaConfig(
    vocab_size=61,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
)
ALONE = SimpleNamespace(num_processes=1, process_index=0, is_main_process=True, no_sync=lambda model: nullcontext())


class Noting(CausalLM):
    """Remembers the token ids of every row that it was asked to collate."""

    def __init__(self) -> None:
        self.collated: list[list[tuple[int, ...]]] = []

    def collate(self, examples: Any, processor: Any, setting: Setting) -> dict[str, Tensor]:
        self.collated.append([tuple(e["input_ids"]) for e in examples])
        return super().collate(examples, processor, setting)


class Emitter:
    """Keeps every event; calls `after[step]` when that step is done."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.step, self.control = 0, events.Control()
        self.after: dict[int, Callable[[], object]] = {}

    def __call__(self, event: Any) -> None:
        self.seen.append(replace(event, step=self.step))
        if isinstance(event, events.StepDone):
            self.after.get(self.step, lambda: None)()

    def of(self, kind: Any) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]

    @property
    def notices(self) -> list[str]:
        return [event.text for event in self.of(events.Notice)]


def rows(count: int, longest: int = 17) -> list[dict[str, Any]]:
    """Encoded rows of different lengths, from one token to `longest`."""
    draw = random.Random(count)
    lengths = [draw.randint(2, longest) for _ in range(count)]
    ids = [[draw.randrange(3, CONFIG.vocab_size) for _ in range(length)] for length in lengths]
    return [counted(row, list(row), truncated=False) for row in ids]


def build(
    folder: Path,
    packed: bool,
    dropout: float = 0.0,
    count: int = 24,
    scaled: bool = False,
    resume: Path | None = None,
    emit: Any = None,
    **settings: Any,
) -> train.Loop:
    """A loop over `count` rows; `loop.run()` trains. `loop.emit` is an Emitter, `loop.plan.task` a Noting."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(CONFIG).requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout
    known = Facts(architecture="", linear_modules=tuple(n for n, _ in model.named_modules() if n.endswith("_proj")))
    adapter = LoraAdapter()
    adapted = attach.attach(model, adapter, LoraOptions(r=2, lora_dropout=dropout), known)
    with torch.no_grad():  # B starts at zero, which would hide A's gradients
        for name, parameter in adapted.parameters().items():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    assert attention.install(adapted.model) is None
    cpu.quicken(adapted.model)
    chosen = TrainSettings(
        **{"batch_size": 4, "epochs": 1, "learning_rate": 1e-2, "warmup": 0.0, "rehearse": False, **settings}
    )
    plan: Any = SimpleNamespace(
        recipe=SimpleNamespace(train=chosen),
        task=Noting(),
        adapter=adapter,
        choice=SimpleNamespace(device="cpu", dtype="float32", autocast=None, grad_scaler=scaled),
        facts=SimpleNamespace(parameters=0),
        base_is_mapped=False,
    )
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=0)
    base: Any = SimpleNamespace(processor=tokenizer, setting=Setting(CausalLM.Options(), packing=packed))
    data, held_out = (Encoded(tuple(rows(n)), (Row({}),) * n, ()) for n in (count, 7))
    emit = emit or Emitter()
    accelerator: Any = ALONE
    prepared = Prepared(plan, base, adapted, Examples(data, held_out))
    return train.Loop(prepared, Session(folder, emit, accelerator), resume=resume)


def weights(loop: train.Loop) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in loop.state.parameters.items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Largest relative distance of a parameter."""
    return max(float((first[n] - second[n]).norm() / second[n].norm()) for n in second)
