"""Whole runs in this process on tiny models, and what they did: gradients, losses, forward passes, rows encoded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from pefttool import run
from pefttool.config import recipe
from pefttool.config.registry import Registry
from pefttool.testing.models import tiny_tokenizer

SIZES = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
    "pad_token_id": 0,
}
#: With dropout: what is frozen must not draw, what trains must draw as it would.
CONFIGS: dict[str, Any] = {
    "bert": (transformers.BertModel, transformers.BertConfig(**SIZES)),
    "distilbert": (
        transformers.DistilBertModel,
        transformers.DistilBertConfig(vocab_size=260, dim=64, hidden_dim=96, n_layers=3, n_heads=4, pad_token_id=0),
    ),
    "llama": (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(
            **SIZES,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            attention_dropout=0.1,
            bos_token_id=3,
            eos_token_id=2,
        ),
    ),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(
            vocab_size=260, n_embd=64, n_layer=3, n_head=4, n_positions=160, bos_token_id=3, eos_token_id=2
        ),
    ),
    "marian": (
        transformers.MarianMTModel,
        transformers.MarianConfig(
            vocab_size=260,
            d_model=64,
            encoder_layers=2,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=96,
            decoder_ffn_dim=96,
            max_position_embeddings=160,
            pad_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=0,
            forced_eos_token_id=None,
        ),
    ),
}
WORDS = ("a", "gem", "of", "film", "two", "hours", "I", "will", "never", "get", "back", "want", "them", "now", "slow")


def store_model(kind: str, folder: Path, seed: int = 7) -> Path:
    cls, config = CONFIGS[kind]
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = cls(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:
                    parameter.mul_(4)  # the usual 0.02 leaves outputs so small that wrong ones would look right
                elif name.endswith("bias"):
                    parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def text(i: int) -> str:
    return " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 3 + i * 5 % 9))


def write_rows(folder: Path, task: str, count: int = 22) -> Path:
    path = folder / "rows.jsonl"
    if task == "chat":
        rows: list[Any] = [
            {"messages": [{"role": "user", "content": text(i)}, {"role": "assistant", "content": text(i + 1)}]}
            for i in range(count)
        ]
    elif task == "causal-lm":
        rows = [{"text": text(i)} for i in range(count)]
    elif task == "seq2seq":
        rows = [{"source": text(i), "target": text(i + 1)} for i in range(count)]
    else:
        rows = [{"text": text(i), "label": ("no", "yes", "so")[i % 3]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass
class Seen:
    """What a run did. `gradients` are those of every step, by parameter; `forwards` counts calls by module's class."""

    losses: list[float] = field(default_factory=list)
    gradients: list[list[Tensor]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    encoded: int = 0
    forwards: dict[str, int] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    def notices(self) -> list[str]:
        return [e["text"] for e in self.events if e["type"] == "Notice"]

    def progressed(self) -> set[str]:
        return {e["what"] for e in self.events if e["type"] == "Progress"}


@contextmanager
def watching(seen: Seen, registry: Registry, task: str) -> Iterator[None]:
    """Count what the run does, through the objects that it uses; nothing is changed for long."""
    from pefttool.training import optimisation

    clip, encode = torch.nn.utils.clip_grad_norm_, registry.tasks[task].encode

    def clipping(parameters: Any, *arguments: Any, **named: Any) -> Any:
        if not isinstance(parameters[0], FakeTensor):  # a simulated step is none
            seen.gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])
        return clip(parameters, *arguments, **named)

    def encoding(*arguments: Any) -> Any:
        seen.encoded += 1
        return encode(*arguments)

    def called(module: nn.Module, inputs: Any, output: Any) -> None:
        name = type(module).__name__
        seen.forwards[name] = seen.forwards.get(name, 0) + 1

    object_: Any = registry.tasks[task]
    object_.encode = encoding
    torch.nn.utils.clip_grad_norm_ = clipping  # type: ignore[assignment]
    handle = nn.modules.module.register_module_forward_hook(called)
    assert optimisation  # its step calls what is watched
    try:
        yield
    finally:
        handle.remove()
        torch.nn.utils.clip_grad_norm_ = clip
        del object_.encode


def fine_tune(
    registry: Registry, out: Path, model: Path, rows: Path, task: str, adapter: str = "head", **options: Any
) -> Seen:
    """One run; `options` are recipe keys, with `__` for the dot."""
    document: dict[str, Any] = {
        "model": str(model),
        "adapter": {"name": adapter},
        "task": {"name": task},
        "data": {"train": str(rows), "eval_fraction": 0.3},
        "train": {"batch_size": 4, "epochs": 2, "sequence_length": 96, "rehearse": False},
        "generation": {"max_new_tokens": 2},
        "device": "cpu",
        "dtype": "float32",
        "out": str(out),
    }
    for key, value in options.items():
        *path, leaf = key.split("__")
        place = document
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = value
    seen = Seen()
    with watching(seen, registry, task):
        finished = run.run(recipe.resolve(document, registry), registry)
    seen.events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    seen.losses = [e["loss"] for e in seen.events if e["type"] == "StepDone"]
    seen.before, seen.after = dict(finished.before), dict(finished.after)
    seen.weights = _weights(finished.adapter)
    return seen


def _weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {f"{p.name} {n}": t for p in sorted(folder.glob("*.safetensors")) for n, t in load_file(p).items()}


def worst(first: Seen, second: Seen) -> float:
    """The largest difference of any gradient, of the losses and of any final weight of two runs, relative to its norm.

    A gradient that is nothing beside the step's others (a key's bias cannot matter to attention) is compared with them.
    """
    assert len(first.gradients) == len(second.gradients) > 0 and first.weights.keys() == second.weights.keys()
    found = [relative(first.weights[n], second.weights[n]) for n in first.weights]
    found.append(relative(torch.tensor(first.losses), torch.tensor(second.losses)))
    for one, two in zip(first.gradients, second.gradients, strict=True):
        least = 1e-2 * max(float(g.norm()) for g in one)
        found += [relative(a, b, least) for a, b in zip(one, two, strict=True)]
    return max(found)


def relative(a: Tensor, b: Tensor, least: float = 0.0) -> float:
    scale = max(float(b.double().norm()), least)
    return float((a.double() - b.double()).norm()) / scale if scale else float(a.double().norm())
