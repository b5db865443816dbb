"""`memory.stream` and `memory.offload` in a recipe: whole runs, what is refused, and what a plan says of them."""

from __future__ import annotations

import filecmp
import json
import mmap
from pathlib import Path

import pytest
import real_step
from real_run import CHAT, CLASSIFY, SMALL, run

from pefttool.api.errors import Refused
from pefttool.config import recipe
from pefttool.config.registry import Registry
from pefttool.files.sectioned_file import ALIGNMENT
from pefttool.forecast import simulate
from pefttool.setup import devices, plan, streamed_base
from pefttool.setup.devices import DeviceFacts
from pefttool.setup.loading import Loading
from pefttool.testing.models import model_folder

MODEL = "example:smollm2-135m-instruct"
DATA = ("data.train=example:chatterbot-english",)
#: A card that is not here.
CARD = devices.imagined("cuda:8GiB", DeviceFacts())[0]
#: The tiny decoder's embedding, to which its output layer is tied, in bfloat16.
TABLE = 260 * 64 * 2


#: Of two runs the second would not tokenise, which leaves a tokenizer in another state.


def equal_folders(ours: Path, theirs: Path) -> None:
    names = sorted(path.name for path in theirs.iterdir())
    assert names == sorted(path.name for path in ours.iterdir())
    assert {"adapter_model.safetensors", "head.safetensors"} & set(names)
    assert filecmp.cmpfiles(ours, theirs, names, shallow=False) == (names, [], [])


def test_a_streamed_run_leaves_the_resident_runs_adapter(tmp_path: Path) -> None:
    """A model of one-byte tokens, float32: every file of the adapter, to the last byte."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"{i} and {i} are {2 * i}"}) + "\n" for i in range(12)))
    arguments = (
        "--adapter",
        "lora",
        "--model",
        str(model_folder("decoder")),
        "--data",
        str(data),
        "--quantize",
        "nf4",
    )
    small = ("train.sequence_length=64", "train.epochs=1", "train.batch_size=4", "generation.max_new_tokens=2")
    settings = [part for setting in small for part in ("-o", setting)]
    finished = {
        stream: run(tmp_path / stream, *arguments, *settings, "-o", f"memory.stream={stream}")
        for stream in ("false", "true")
    }
    equal_folders(finished["true"].folder / "adapter", finished["false"].folder / "adapter")
    for key in ("before", "after", "samples"):
        assert finished["true"].result[key] == finished["false"].result[key]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "prefix"])
def test_and_on_a_real_model(tmp_path: Path, adapter: str) -> None:
    """The second of two streamed runs finds the file that the first one made."""
    arguments = ("--adapter", adapter, "--model", MODEL, "--data", "example:chatterbot-english", "--quantize", "nf4")
    theirs = run(tmp_path / "resident", *arguments, *CHAT)
    for name in ("first", "second"):
        ours = run(tmp_path / name, *arguments, *CHAT, "-o", "memory.stream=true")
        equal_folders(ours.folder / "adapter", theirs.folder / "adapter")
        assert ours.result["after"] == theirs.result["after"]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["head", "lora"])
def test_and_on_an_encoder_with_a_new_head(tmp_path: Path, adapter: str) -> None:
    """Head-only training builds another model than LoRA does, from the same folder."""
    arguments = ("--adapter", adapter, "--quantize", "nf4", *CLASSIFY, *SMALL)
    theirs = run(tmp_path / "resident", *arguments)
    ours = run(tmp_path / "streamed", *arguments, "-o", "memory.stream=true")
    equal_folders(ours.folder / "adapter", theirs.folder / "adapter")


@pytest.mark.parametrize(
    ("adapter", "settings", "key", "reason"),
    [
        ("lora", ("memory.stream=true",), "memory.stream", r"only quantised blocks .* add quantize \(able: .*nf4"),
        ("full", ("memory.stream=true",), "memory.stream", "adapter 'full' trains the blocks, which then have to stay"),
        (
            "lora",
            ("memory.stream=true", "quantize=nf4", "adapter.use_dora=true"),
            "adapter.use_dora",
            "DoRA needs the norms of weights that are streamed",
        ),
        (
            "lora",
            ("memory.stream=true", "quantize=nf4", "train.compile=true"),
            "memory.stream",
            "a compiled model cannot fetch its blocks; drop it, or train.compile",
        ),
        ("lora", ("memory.offload=[embeddings]",), "memory.offload", "'embeddings': on cpu they are in host memory"),
        (
            "full",
            ("memory.offload=[embeddings]", "device=cuda"),
            "memory.offload",
            "'embeddings': adapter 'full' trains them",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_the_plan(registry: Registry, adapter, settings, key, reason) -> None:
    machine = CARD if "device=cuda" in settings else None
    with pytest.raises(Refused, match=f"{key}: {reason}"):
        made(registry, adapter, MODEL, *settings, machine=machine)


def made(registry: Registry, adapter: str, model: object, *settings: str, machine: DeviceFacts | None = None):
    overrides = (f"model={model}", *DATA, *settings)
    document = recipe.combine({}, {"adapter.name": adapter, "task.name": "chat"}, overrides)
    return plan.make(recipe.resolve(document, registry), registry, machine=machine)


def peak(registry: Registry, model: object, *settings: str, machine: DeviceFacts | None = None, tokens: int = 64):
    arguments = ("quantize=nf4", f"train.sequence_length={tokens}", *settings)
    chosen = made(registry, "lora", model, *arguments, machine=machine)
    return chosen, simulate.peak(chosen, chosen.setting(), 2, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["none", "non-reentrant", "reentrant"])
def test_the_simulated_peak_is_the_allocators(registry: Registry, way: str) -> None:
    """On a CPU the frozen weights are views of a mapped file, which no allocator handed out."""
    settings = ("device=cpu", "memory.stream=true", f"train.gradient_checkpointing={way}")
    chosen, estimate = peak(registry, MODEL, *settings)
    assert estimate.parts["weights"] == 0
    assert estimate.peak_bytes == pytest.approx(real_step.measured(chosen, (), 2, 64), rel=0.01)


def test_on_a_card_two_blocks_are_there_and_tables_are_not(registry: Registry) -> None:
    """Simulated, to the byte: what lies on the card less is what is kept elsewhere."""
    machine = ("device=cuda", "train.gradient_checkpointing=non-reentrant")
    parts = {}
    for name, settings in {
        "resident": (),
        "offloaded": ("memory.offload=[embeddings]",),
        "streamed": ("memory.offload=[embeddings]", "memory.stream=true"),
    }.items():
        chosen, estimate = peak(registry, model_folder("decoder"), *machine, *settings, machine=CARD)
        parts[name] = estimate.parts["weights"]
    assert parts["resident"] - parts["offloaded"] == TABLE
    blocks = streamed_base.skeleton(Loading.of(chosen, chosen.model.path, chosen.setting()))[1].sections
    # Sections are whole pages, with tensors at multiples of 64 bytes: a little more than the tensors themselves.
    left = parts["streamed"] - 2 * blocks[0].size
    held = sum(e.end - e.start for section in blocks for e in section.entries.values())
    assert left == parts["offloaded"] - held
    for section in blocks:
        gaps = section.size - sum(e.end - e.start for e in section.entries.values())
        assert 0 <= gaps < mmap.PAGESIZE + ALIGNMENT * len(section.entries)
