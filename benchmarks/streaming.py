"""QLoRA of an 8B-shaped Llama whose frozen blocks are streamed: what it holds, for real on a CPU, simulated for a card.

python benchmarks/streaming.py simulate                    the table of peaks for a CUDA card: minutes, no weights
python benchmarks/streaming.py generate FOLDER             5.3 GiB of random NF4 weights, as a streamed run reads them
python benchmarks/streaming.py train FOLDER --tokens 512   two steps with them; the process's memory, sampled
python benchmarks/streaming.py compare                     SmolLM2-135M: seconds of a step, resident and streamed

LoRA r16 on all linear layers, float32 adapters, AdamW, one row, non-reentrant checkpointing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 2048,
    },
}
HOST = ("memory.offload=[embeddings]",)
STREAMED = (*HOST, "memory.stream=true")
#: Model, tokens, settings, and what the settings are called.
SIMULATED = (
    ("8B", 512, STREAMED, "blocks streamed, embeddings and head on the host"),
    ("8B", 2048, STREAMED, "blocks streamed, embeddings and head on the host"),
    ("8B", 2048, HOST, "embeddings and head on the host"),
    ("8B", 2048, (), "all on the card"),
    ("70B", 512, STREAMED, "blocks streamed, embeddings and head on the host"),
)
PARTS = ("weights", "adapter", "optimizer", "gradients", "activations", "logits", "workspace")
SAMPLE_SECONDS = 0.005
ROUNDS = 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("simulate")
    commands.add_parser("compare")
    for name in ("generate", "train"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        command.add_argument("--model", choices=SHAPES, default="8B")
        if name == "train":
            command.add_argument("--tokens", type=int, default=512)
            command.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.command in ("simulate", "compare"):
        globals()[arguments.command]()
        return
    os.environ["PEFTTOOL_CACHE"] = str(arguments.folder)
    if arguments.command == "generate":
        generate(arguments.folder, arguments.model)
    else:
        train(arguments.folder, arguments.model, arguments.tokens, arguments.steps)


def config_folder(parent: Path, model: str) -> Path:
    from transformers import LlamaConfig

    folder = parent / model
    if not (folder / "config.json").is_file():
        config = LlamaConfig(
            architectures=["LlamaForCausalLM"],
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            **SHAPES[model],  # type: ignore[arg-type]
        )
        config.save_pretrained(folder)
    return folder


def planned(folder: Path, tokens: int, device: str, *settings: str) -> Any:
    """The plan of a run on a model that is a config alone."""
    from pefttool.config import recipe, registry
    from pefttool.setup import devices, plan

    found = registry.build()
    machine, name, _ = devices.imagined(device, devices.report())
    overrides = (
        f"model={folder}",
        f"device={name}",
        "quantize=nf4",
        "adapter.r=16",
        "train.batch_size=1",
        f"train.sequence_length={tokens}",
        "train.gradient_checkpointing=non-reentrant",
        *settings,
    )
    document = recipe.combine({}, {"adapter.name": "lora", "task.name": "causal-lm"}, overrides)
    return plan.make(recipe.resolve(document, found, data_optional=True), found, machine=machine)


def simulate() -> None:
    from pefttool.forecast import forecast

    print(f"{'GiB at the peak':>16}  {'model, tokens':<12}  ", *(f"{part:>11}" for part in PARTS))
    with tempfile.TemporaryDirectory() as parent:
        for model, tokens, settings, text in SIMULATED:
            chosen = planned(config_folder(Path(parent), model), tokens, "cuda:80GiB", *settings)
            estimate = forecast.make(chosen).estimate
            shares = (f"{estimate.parts[part] / 2**30:>11.3f}" for part in PARTS)
            print(f"{estimate.peak_bytes / 2**30:>16.3f}  {model:<4} {tokens:>7}  ", *shares, f"  {text}", flush=True)


def compare() -> None:
    """Both in one process, a step of one and a step of the other: 4 rows of 128 tokens, on this CPU."""
    from pefttool.config import recipe, registry
    from pefttool.setup import attach, base, plan, techniques
    from pefttool.training.optimisation import make_optimizer

    found, runs = registry.build(), {}
    for name in ("resident", "streamed"):
        overrides = (
            "model=example:smollm2-135m-instruct",
            "data.train=example:chatterbot-english",
            "device=cpu",
            "quantize=nf4",
            "train.sequence_length=128",
            f"memory.stream={str(name == 'streamed').lower()}",
        )
        document = recipe.combine({}, {"adapter.name": "lora", "task.name": "chat"}, overrides)
        chosen = plan.make(recipe.resolve(document, found), found)
        loaded = base.load(chosen, ())
        adapted = attach.attach(loaded.model, chosen.adapter, chosen.recipe.adapter_options, loaded.facts)
        techniques.apply(chosen, adapted)
        example = chosen.task.filler(128, loaded.setting)
        batch = chosen.task.collate([example] * 4, loaded.processor, loaded.setting)
        optimizer = make_optimizer(adapted, chosen.adapter, chosen.recipe.train)
        runs[name] = (chosen, adapted, batch, 4.0 * example["weight"], optimizer)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            began = time.monotonic()
            step(*run)
            seconds[name].append(time.monotonic() - began)
    for name, measured in seconds.items():
        print(f"{name:<9} {median(measured[2:]):.3f} s a step, the median of {ROUNDS - 2}")


def step(chosen: Any, adapted: Any, batch: Any, weight: float, optimizer: Any) -> Any:
    """The trainer's own optimiser step."""
    from pefttool.inference.predictor import Predictor
    from pefttool.setup.precision import grad_scaler
    from pefttool.training.optimisation import Update, optimizer_step

    parameters = list(adapted.parameters().values())
    update = Update(optimizer, grad_scaler(chosen.choice), parameters, chosen.recipe.train.max_grad_norm)
    predictor = Predictor(adapted.model.train(), chosen.task, None, chosen.setting(), chosen.choice)
    return optimizer_step(predictor, update, [(batch, True)], weight)


def generate(folder: Path, model: str) -> None:
    """A file of the right size and layout with random weights, where `streamed_base` will look for it."""
    import torch
    from bitsandbytes import functional
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from pefttool.files.sectioned_file import TensorSection, write
    from pefttool.setup import streamed_base
    from pefttool.setup.loading import Loading

    chosen = planned(config_folder(folder, model), 512, "cpu", "memory.stream=true")
    loading = Loading.of(chosen, chosen.model.path, chosen.setting())
    path = streamed_base.file_for(loading)
    if path.is_file():
        return
    abstract, slots, _ = streamed_base.skeleton(loading)
    rest = {n: t for n, t in (*abstract.named_parameters(), *abstract.named_buffers()) if t.numel()}
    sections = [TensorSection.of(rest), *slots.sections]
    entries = {name: entry for section in sections for name, entry in section.entries.items()}
    constants = {
        "code": functional.get_4bit_type("nf4", device="cpu"),
        "nested_code": functional.create_dynamic_map().float(),
        "offset": torch.tensor(0.03),
    }
    rotary = LlamaRotaryEmbedding(abstract.config)
    generator = torch.Generator().manual_seed(0)

    def tensor(name: str) -> Any:
        entry, leaf = entries[name], name.rpartition(".")[2]
        dtype = getattr(torch, entry.dtype)
        if leaf in constants:
            return constants[leaf]
        if leaf.endswith("inv_freq"):
            return getattr(rotary, leaf)
        if leaf == "nested_absmax":
            return torch.full(entry.shape, 0.01, dtype=dtype)
        if dtype == torch.uint8:
            return torch.randint(256, entry.shape, dtype=dtype, generator=generator)
        if len(entry.shape) == 1:
            return torch.ones(entry.shape, dtype=dtype)
        return torch.empty(entry.shape, dtype=dtype).normal_(std=0.02, generator=generator)

    metadata = {"seed": "", "plain": json.dumps([]), "missing": json.dumps([])}
    write(path, sections, tensor, metadata)
    print(f"{path.stat().st_size / 2**30:.2f} GiB in {path}")


class Sampler(threading.Thread):
    """The most that the process held of each kind of memory, GiB, looked at every 5 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak: dict[str, float] = {}
        self.start()

    def run(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                kind, _, size = line.partition(":")
                if kind in ("RssAnon", "RssFile"):
                    self.peak[kind] = max(self.peak.get(kind, 0.0), int(size.split()[0]) / 2**20)
            time.sleep(SAMPLE_SECONDS)


def train(folder: Path, model: str, tokens: int, steps: int) -> None:
    """Real steps on this CPU, through the trainer's own functions."""
    from pefttool.setup import allocator

    assert allocator.give_back_freed_memory()
    import torch

    from pefttool.models import facts
    from pefttool.setup import attach, streamed_base, techniques
    from pefttool.setup.loading import Loading
    from pefttool.training.optimisation import make_optimizer

    sampler = Sampler()
    chosen = planned(config_folder(folder, model), tokens, "cpu", "memory.stream=true")
    setting, dtype = chosen.setting(), chosen.choice.dtype

    def absent() -> Any:
        raise SystemExit(f"there are no weights: python benchmarks/streaming.py generate {folder} --model {model}")

    found, slots = streamed_base.load(Loading.of(chosen, chosen.model.path, setting), absent)
    loaded, processor = found.model, found.processor
    known = facts.inspect(loaded, chosen.task, quantizer="nf4", dtype=dtype, device="cpu")
    adapted = attach.attach(loaded, chosen.adapter, chosen.recipe.adapter_options, known)
    techniques.apply(chosen, adapted)
    optimizer = make_optimizer(adapted, chosen.adapter, chosen.recipe.train)
    trained = list(adapted.parameters().values())
    print(
        f"{model}, {tokens} tokens; {sum(p.numel() for p in trained):,} parameters train; {show(sampler)}", flush=True
    )
    ids = torch.randint(SHAPES[model]["vocab_size"], (tokens,), generator=torch.Generator().manual_seed(1)).tolist()
    example = {**chosen.task.filler(tokens, setting), "input_ids": ids}
    example["labels"] = [-100, *ids[1:]]
    batch = chosen.task.collate([example], processor, setting)
    for number in range(steps):
        began, fetched = time.monotonic(), slots.fetched
        result = step(chosen, adapted, batch, float(example["weight"]), optimizer)
        seconds = time.monotonic() - began
        print(
            f"step {number + 1}: loss {result.loss:.4f}, gradient norm {result.grad_norm:.3f}, {seconds:.0f} s,"
            f" {slots.fetched - fetched} blocks fetched; {show(sampler)}",
            flush=True,
        )


def show(sampler: Sampler) -> str:
    peak = sampler.peak
    return f"peak RssAnon {peak.get('RssAnon', 0):.3f} GiB, RssFile {peak.get('RssFile', 0):.3f} GiB"


if __name__ == "__main__":
    main()
