"""Features of what stays frozen: the same training without running it, once computed, and never stale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import frozen_runs as runs
import pytest
import torch
from torch import nn

from pefttool.config.registry import Registry
from pefttool.data import batches, encoding
from pefttool.inference import features, frozen, witness

#: Float32; a row's features come from a batch of other shape, so products are rounded in another order.
pytestmark = pytest.mark.usefixtures("own_cache")
ROUNDING = 2e-6
CLASSIFY = "text-classification"
LAST = {"adapter__train_last_layers": 1}
PADDED = {"train__packing": False}
MEAN, OWN = {"task__pooling": "mean"}, {"task__pooling": "model"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: runs.store_model(kind, folder / kind) for kind in runs.CONFIGS}


@pytest.mark.parametrize(
    ("kind", "task", "adapter", "options"),
    [
        ("bert", CLASSIFY, "head", {}),
        ("bert", CLASSIFY, "head", OWN),
        ("bert", CLASSIFY, "head", {**LAST, "train__rehearse": True}),
        ("bert", CLASSIFY, "full", {**LAST, "adapter__train_last_layers": 2}),
        ("bert", CLASSIFY, "full", {**LAST, **MEAN, "train__gradient_accumulation": 3}),
        ("distilbert", CLASSIFY, "full", LAST),
        ("llama", "chat", "head", {}),
        ("llama", "chat", "head", PADDED),
        ("llama", "causal-lm", "head", LAST),
        ("llama", "causal-lm", "full", LAST),
        ("llama", "causal-lm", "lora", {"adapter__target_modules": ["*.layers.2.*"]}),
        ("bert", CLASSIFY, "lora", {"adapter__target_modules": ["*.layer.2.*"]}),
        ("llama", "chat", "full", {**LAST, **PADDED}),
        ("gpt2", "causal-lm", "full", {**LAST, "train__batch_tokens": 120}),
        ("gpt2", "chat", "head", PADDED),
        # a decoder's features are as long as the target, and the row as both texts
        ("marian", "seq2seq", "head", {}),
        ("llama", "chat", "head", {"quantize": "nf4", **PADDED}),
        # the products of packed rows this small are rounded alike whatever lies beside them: bfloat16 compares, too
        ("llama", "chat", "head", {"quantize": "int8", "dtype": "bfloat16"}),
        ("llama", "chat", "full", {**LAST, "dtype": "bfloat16", "train__gradient_checkpointing": "non-reentrant"}),
    ],
)
def test_training_on_features_is_the_same_training(
    registry: Registry,
    models: dict[str, Path],
    tmp_path: Path,
    kind: str,
    task: str,
    adapter: str,
    options: dict[str, Any],
) -> None:
    """Every gradient of every step, dropout included; losses, metrics, and the weights in the end. Then once more."""
    given = {**options, "train__optimizer": "sgd", "train__learning_rate": 0.01, "train__head_learning_rate": 0.01}
    rows = runs.write_rows(tmp_path, task)

    def run(name: str, cache: bool) -> runs.Seen:
        return runs.fine_tune(registry, tmp_path / name, models[kind], rows, task, adapter, data__cache=cache, **given)

    without, first, second = run("without", False), run("first", True), run("second", True)
    assert "features" in first.progressed() and "features" not in without.progressed() | second.progressed()
    assert runs.worst(first, without) <= ROUNDING
    assert runs.worst(second, first) == 0
    assert first.before == pytest.approx(without.before, rel=ROUNDING)
    assert first.after == pytest.approx(without.after, rel=ROUNDING) and second.after == first.after
    assert [n for n in first.notices() if "cache" in n] == []


def test_a_second_run_encodes_nothing_and_leaves_the_backbone_alone(
    registry: Registry, models: dict[str, Path], tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What still runs does not depend on the number of rows: two that ask the model, and the sample answers."""
    monkeypatch.setattr(features, "TOKENS", 256)
    passes = {}
    for count in (22, 60):
        rows = runs.write_rows(tmp_path, CLASSIFY, count)
        again = [
            runs.fine_tune(registry, tmp_path / f"{count} {i}", models["bert"], rows, CLASSIFY, train__epochs=5)
            for i in range(2)
        ]
        assert [seen.encoded for seen in again] == [count, 0]
        passes[count] = [seen.forwards["BertSelfAttention"] for seen in again]
    assert passes[22][1] == passes[60][1] < passes[22][0] < passes[60][0]
    # Three blocks: twice traced, twice compared in two modes, asked for answers twice; and four rows, asked twice for
    # what the adapter is compared with once it is loaded.
    assert passes[60][1] <= (7 + 2 * witness.ROWS) * 3
    assert len(list((own_cache / "made").iterdir())) == 8  # rows and features, of training and held-out rows, of both


def test_one_blocks_features_do_not_run_the_blocks_below(
    registry: Registry, models: dict[str, Path], tmp_path: Path
) -> None:
    rows = runs.write_rows(tmp_path, "causal-lm")
    options = {**LAST, "train__epochs": 4}
    counts = []
    for name, cache in (("without", False), ("first", True), ("second", True)):
        seen = runs.fine_tune(
            registry, tmp_path / name, models["llama"], rows, "causal-lm", "full", data__cache=cache, **options
        )
        counts.append(seen.forwards["LlamaAttention"])
    steps = 4 * 4 + 4 * 2  # training steps, and batches of held-out rows
    assert counts[0] - counts[2] == 2 * (steps + 2)  # two of three blocks, at every step and in the first look


@pytest.mark.parametrize("adapter", ["lora", "prefix", "full"])
def test_who_trains_from_the_first_block_on_has_no_features(
    registry: Registry, models: dict[str, Path], tmp_path: Path, own_cache: Path, adapter: str
) -> None:
    rows = runs.write_rows(tmp_path, "causal-lm")
    for i in range(2):
        seen = runs.fine_tune(registry, tmp_path / str(i), models["llama"], rows, "causal-lm", adapter)
        assert "features" not in seen.progressed() and seen.encoded == (22, 0)[i]
    assert len(list((own_cache / "made").iterdir())) == 2


def test_memory_that_runs_out_halves_the_batches_of_the_pass(
    registry: Registry, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = runs.write_rows(tmp_path, CLASSIFY)
    expected = runs.fine_tune(registry, tmp_path / "expected", models["bert"], rows, CLASSIFY)
    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path / "other"))
    output, sizes = features._Maker._output, []

    def small(self: Any, predictor: Any, examples: Any) -> Any:
        sizes.append(len(examples))
        if sizes[-1] > 3:
            raise MemoryError
        return output(self, predictor, examples)

    monkeypatch.setattr(features._Maker, "_output", small)
    seen = runs.fine_tune(registry, tmp_path / "out", models["bert"], rows, CLASSIFY)
    assert max(sizes) > 3 and runs.worst(seen, expected) <= 1e-5  # AdamW makes much of little
    assert seen.events[-1]["type"] == "RunFinished"


def test_without_the_cache_nothing_is_kept(
    registry: Registry, models: dict[str, Path], tmp_path: Path, own_cache: Path
) -> None:
    rows = runs.write_rows(tmp_path, CLASSIFY)
    runs.fine_tune(registry, tmp_path / "out", models["bert"], rows, CLASSIFY, data__cache=False)
    assert not (own_cache / "made").exists()


def test_a_damaged_file_is_made_again(
    registry: Registry, models: dict[str, Path], tmp_path: Path, own_cache: Path
) -> None:
    rows = runs.write_rows(tmp_path, CLASSIFY)
    first = runs.fine_tune(registry, tmp_path / "first", models["bert"], rows, CLASSIFY)
    whole = {path: path.read_bytes() for path in (own_cache / "made").iterdir()}
    for i, (path, content) in enumerate(whole.items()):
        path.write_bytes(content[: len(content) // 2] if i % 2 else content[:-1] + bytes([content[-1] ^ 1]))
    second = runs.fine_tune(registry, tmp_path / "second", models["bert"], rows, CLASSIFY)
    assert second.encoded == 22 and "features" in second.progressed() and second.losses == first.losses
    assert {path: path.read_bytes() for path in (own_cache / "made").iterdir()} == whole


def test_a_cache_that_cannot_be_used_is_told_and_the_run_goes_on(
    registry: Registry, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    rows = runs.write_rows(tmp_path, CLASSIFY)
    first = runs.fine_tune(registry, tmp_path / "first", models["bert"], rows, CLASSIFY)
    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path / "file"))
    second = runs.fine_tune(registry, tmp_path / "second", models["bert"], rows, CLASSIFY)
    (notice,) = [text for text in second.notices() if "going on without" in text]
    assert str(tmp_path / "file") in notice
    assert second.losses == pytest.approx(first.losses, rel=ROUNDING)


def test_too_large_features_are_told_and_the_frozen_part_runs(
    registry: Registry, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "LIMIT", 1 << 12)
    rows = runs.write_rows(tmp_path, "chat")
    seen = runs.fine_tune(registry, tmp_path / "out", models["llama"], rows, "chat")
    assert any("features are not cached" in n and "the limit is" in n for n in seen.notices())
    assert "features" not in seen.progressed() and len(seen.losses) == 8


def test_less_than_one_pass_is_not_worth_computing_them_but_those_there_are_used(
    registry: Registry, models: dict[str, Path], tmp_path: Path
) -> None:
    rows = runs.write_rows(tmp_path, CLASSIFY)
    few = {"train__max_steps": 2}
    seen = [
        runs.fine_tune(registry, tmp_path / str(i), models["bert"], rows, CLASSIFY, **options)
        for i, options in enumerate((few, {}, few))
    ]
    assert ["features" in s.progressed() for s in seen] == [False, True, False]
    assert seen[0].forwards["BertSelfAttention"] > seen[2].forwards["BertSelfAttention"]


# -- who may be trusted: asked on toys


class Stack(nn.Module):
    """Embedding, three blocks, a head; `kind` says what is peculiar."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed = nn.Embedding(20, 8)
        self.first = nn.Dropout(0.5)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.last = nn.Dropout(0.5)
        self.head = nn.Linear(8, 2)
        self.prompt = nn.Parameter(torch.ones(8))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        early = hidden = self.first(self.embed(ids))
        if self.kind == "prompt":
            hidden = hidden + self.prompt
        if self.kind == "drawing":
            hidden = nn.functional.dropout(hidden, 0.5, self.training)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        if self.kind == "skip":
            hidden = hidden + early
        if self.kind == "block skip":
            hidden = hidden + torch.tanh(self.layers[0](early))
        return self.head(self.last(hidden.mean(1)))


class Toy:
    """As much of a task as is asked."""

    def collate(self, examples: Any, processor: Any, setting: Any) -> dict[str, torch.Tensor]:
        width = max(e["length"] for e in examples)
        return {"ids": torch.tensor([(e["ids"] * width)[:width] for e in examples])}

    def loss(self, model: Any, batch: Any, setting: Any) -> Any:
        return SimpleNamespace(sum=model(batch["ids"]).logsumexp(-1).sum())


def ask(kind: str, trained: tuple[str, ...]) -> tuple[Stack, frozen.FrozenPart]:
    torch.manual_seed(0)
    model = Stack(kind)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    cpu: Any = SimpleNamespace(device="cpu", autocast=None)
    eager = SimpleNamespace(train=SimpleNamespace(compile=False))
    adapter = SimpleNamespace(frozen_backbone=False)
    known = SimpleNamespace(layers=("layers.0", "layers.1", "layers.2"), output_modules=())
    planned: Any = SimpleNamespace(task=Toy(), choice=cpu, adapter=adapter, recipe=eager, facts=known)
    loaded: Any = SimpleNamespace(processor=None, setting=None)
    adapted: Any = SimpleNamespace(model=model, eval_modules=())
    examples = tuple({"ids": list(range(i, i + 4)), "length": 4} for i in range(5))
    data = encoding.Encoded(examples, (), ())
    state = torch.get_rng_state()
    model.eval()
    found = frozen.find(planned, loaded, adapted, data)
    assert torch.equal(torch.get_rng_state(), state) and not any(m.training for m in model.modules())
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return model, found


def place(model: nn.Module, found: frozen.FrozenPart) -> str | None:
    return None if found.frontier is None else found.frontier.name


@pytest.mark.parametrize(
    ("trained", "expected", "still"),
    [
        (("head",), "layers.2", {"embed", "first", "layers.0", "layers.1", "layers.2"}),
        (("layers.2", "head"), "layers.1", {"embed", "first", "layers.0", "layers.1"}),
        (("layers.1", "head"), "layers.0", {"embed", "first", "layers.0"}),
        (("layers.0", "head"), None, set()),
        (("embed", "head"), None, set()),
        (("",), None, set()),
    ],
)
def test_the_frontier_is_the_last_frozen_block(trained: Any, expected: str | None, still: set[str]) -> None:
    model, found = ask("plain", trained)
    names = {module: name for name, module in model.named_modules()}
    assert place(model, found) == expected and {names[m] for m in found.eval_modules} == still
    assert found.reason is None


def test_what_still_runs_below_may_be_needed(kind: str = "skip") -> None:
    """Embeddings are cheap, so they run: a model that adds them to the last block's output has features."""
    assert place(*ask(kind, ("head",))) == "layers.2"


@pytest.mark.parametrize("kind", ["block skip", "drawing"])
def test_a_model_whose_loss_depends_on_more_is_found_out(kind: str) -> None:
    """What the rest needs is computed below the last block, or something below draws that is no module."""
    _, found = ask(kind, ("head",))
    assert found.frontier is None and found.eval_modules and "no one frozen module of Stack" in str(found.reason)


def test_a_bare_parameter_below_the_blocks_is_noticed() -> None:
    assert ask("prompt", ("prompt", "head"))[1] == frozen.FrozenPart()
