"""The rehearsal: what it tries, that it says what it found, and that nothing of it remains."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_loop import build, equal, weights
from torch import nn

from pefttool import Facts
from pefttool.api import events
from pefttool.api.errors import RunError, UsageError
from pefttool.api.values import Loss
from pefttool.config.settings import TrainSettings
from pefttool.data.batches import Batches
from pefttool.inference import packing
from pefttool.setup.base import Base
from pefttool.training import rehearsal


def trained(folder: Path, packed: bool, rehearse: bool, optimizer: str) -> Any:
    folder.mkdir()
    loop = build(
        folder, packed, dropout=0.3, rehearse=rehearse, optimizer=optimizer, checkpoint_every=2, gradient_accumulation=2
    )
    torch.manual_seed(7)
    loop.run()
    return loop


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_a_run_is_the_same_to_the_bit_after_a_rehearsal(tmp_path: Path, packed: bool, optimizer: str) -> None:
    """Dropout, weights, optimiser, random state, losses, evaluations, and what is on disk."""
    loops = {rehearse: trained(tmp_path / str(rehearse), packed, rehearse, optimizer) for rehearse in (True, False)}
    assert equal(weights(loops[True]), weights(loops[False]))
    told = [
        [(e.step, e.loss, e.learning_rate, e.grad_norm) for e in loop.emit.of(events.StepDone)]
        + [(e.step, e.metrics, e.best) for e in loop.emit.of(events.Evaluated)]
        for loop in loops.values()
    ]
    assert told[0] == told[1]
    for rehearse in (True, False):
        assert [p.name for p in (tmp_path / str(rehearse)).iterdir()] == ["checkpoints"]
    stored = [load_file(tmp_path / str(r) / "checkpoints" / "step-2" / "state.safetensors") for r in (True, False)]
    assert equal(*stored) and len(stored[0]) > 20


def test_it_says_what_it_found(tmp_path: Path) -> None:
    loop = build(tmp_path, True, rehearse=True)
    loop.run()
    (found,) = [text for text in loop.emit.notices if text.startswith("rehearsal: ")]
    assert "the longest batch (4 rows of up to" in found and "GiB" in found
    assert [(e.done, e.total) for e in loop.emit.of(events.Progress)] == [(0, 1), (1, 1)]
    assert isinstance(loop.emit.seen[0], events.Progress)  # before training starts


def test_one_pass_one_update_one_evaluation(tmp_path: Path) -> None:
    """So that it takes at most as long as three steps."""
    loop = build(tmp_path, True, rehearse=False)
    passes: list[bool] = []
    layer = loop.state.adapted.model.get_submodule("base_model.model.model.layers.1")
    layer.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    task: Any = loop.plan.task
    rehearsal.rehearse(loop.state)
    # The first pass of a model asks it, with one short row, whether its loss can be had without logits.
    assert passes.count(True) == 1 and len(passes) <= 3
    assert [len(batch) for batch in task.collated] == [4, 4]
    lengths = sorted((e["length"] for e in loop.state.held_out.examples), reverse=True)
    assert [len(row) for row in task.collated[1]] == lengths[:4]
    assert all(parameter.grad is None for parameter in loop.state.parameters.values())


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("tokens", [None, 40])
def test_the_longest_batch_of_all_epochs_is_tried(packed: bool, tokens: int | None) -> None:
    lengths = tuple((7 * i) % 31 + 1 for i in range(50))
    batches = Batches(lengths, 4, 2, 3, tokens, packed)
    steps = 3 * batches.steps_per_epoch
    found = rehearsal.longest_batch(batches, steps)
    everything = [rows for epoch in range(4) for step in batches.epoch(epoch) for rows in step]

    def cost(rows: list[int]) -> int:
        return sum(lengths[r] for r in rows) if packed else len(rows) * max(lengths[r] for r in rows)

    first = [rows for epoch in range(3) for step in batches.epoch(epoch) for rows in step]
    assert cost(found) == max(map(cost, first)) <= max(map(cost, everything))


def test_too_little_memory_shows_at_once(tmp_path: Path) -> None:
    """And the run begins with what fits."""
    loop = build(tmp_path, True, rehearse=True)
    failed: list[int] = []

    def forward(module: Any, inputs: Any) -> None:
        if torch.is_grad_enabled() and not failed:
            failed.append(loop.emit.step)
            raise MemoryError

    loop.state.adapted.model.register_forward_pre_hook(forward)
    loop.run()
    assert failed == [0] and loop.state.halvings == 1
    assert any(text.startswith("rehearsal: memory ran out (forward)") for text in loop.emit.notices)


def test_too_little_disk_shows_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly what is needed is enough: the adapter, and what three checkpoints hold, the best's included: two stay."""
    loop = build(tmp_path, True, rehearse=True, checkpoint_every=1)
    trained_bytes = sum(p.nbytes for p in loop.state.parameters.values())
    state = 2 * trained_bytes + 4 * len(loop.state.parameters)
    needed = trained_bytes + 3 * (2 * trained_bytes + state)
    for free in (needed, needed - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if free == needed:
            rehearsal.rehearse(loop.state)
            continue
        with pytest.raises(
            RunError, match=r"the adapter and 3 checkpoints need .* lower train\.keep_checkpoints \(2\)"
        ):
            loop.run()
    assert not list(tmp_path.iterdir()) and not loop.emit.of(events.StepDone)


def test_checkpoints_that_may_never_come_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = build(tmp_path, True, rehearse=True, keep_best=False)
    trained_bytes = sum(p.nbytes for p in loop.state.parameters.values())
    one = trained_bytes + 3 * trained_bytes + 4 * len(loop.state.parameters)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=one))
    rehearsal.rehearse(loop.state)
    (text,) = [e.text for e in loop.emit.of(events.Notice) if e.level == "warning"]
    assert "the adapter and 3 checkpoints need" in text
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=one - 1))
    with pytest.raises(RunError, match="the adapter and 1 checkpoint need"):
        rehearsal.rehearse(loop.state)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = build(tmp_path, True, rehearse=True)

    def save(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(type(loop.plan.adapter), "save", save)
    with pytest.raises(RunError, match="cannot be written to: Read-only file system: choose another --out"):
        loop.run()


def test_statistics_of_training_are_put_back(tmp_path: Path) -> None:
    """A batch norm changes its buffers in the forward pass; a failure inside leaves nothing either."""
    loop = build(tmp_path, True)
    norm = nn.BatchNorm1d(3)
    loop.state.adapted.model.norm = norm  # type: ignore[assignment]
    before, start = {n: b.clone() for n, b in norm.named_buffers()}, weights(loop)
    with pytest.raises(KeyError), rehearsal.undisturbed(loop.state):
        norm(torch.randn(5, 3))
        with torch.no_grad():
            next(iter(loop.state.parameters.values())).add_(1)
        assert not norm.running_mean.equal(before["running_mean"])
        raise KeyError
    assert equal(dict(norm.named_buffers()), before) and equal(weights(loop), start)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_rows_that_depend_on_their_company_are_told(tmp_path: Path, packed: bool) -> None:
    """Padded here; where rows are packed, the run asks before it packs them (below)."""
    sound, spoilt, alone = (build(tmp_path, packed, rehearse=True, batch_size=n) for n in (4, 4, 1))
    for loop in (spoilt, alone):
        loop.plan.task.loss = company(loop.plan.task.loss, 1.01)
    for loop in (sound, spoilt, alone):
        loop.run()
    told = [[e.text for e in loop.emit.of(events.Notice) if e.level == "warning"] for loop in (sound, spoilt, alone)]
    assert told[0] == told[2] == []
    if not packed:
        (text,) = told[1]
        assert (
            text.startswith("two rows padded to one length have a loss of") and "use train.batch_size=1, with" in text
        )


def company(loss: Any, factor: float) -> Any:
    """A loss that is larger, in evaluation, where more than one row is in the batch."""

    def larger(model: Any, batch: Any, setting: Any) -> Any:
        found = loss(model, batch, setting)
        rows = len(batch["lengths"]) if "lengths" in batch else len(batch["input_ids"])
        return Loss(found.sum * (factor if rows > 1 else 1.0), found.weight)

    return larger


@pytest.mark.parametrize("factor", [1.0, 1.001, 0.999])
def test_rows_are_packed_only_where_their_loss_stays_what_it_is(tmp_path: Path, factor: float) -> None:
    loop = build(tmp_path, False)
    plan, task = loop.plan, loop.plan.task
    task.loss = company(task.loss, factor)  # type: ignore[method-assign]
    base = Base(loop.state.adapted.model, loop.base.processor, loop.base.setting, Facts(architecture=""), None)  # type: ignore[arg-type]
    asked: Any = SimpleNamespace(**{**vars(plan), "may_pack": True})
    asked.recipe = SimpleNamespace(train=TrainSettings())
    told: list[str] = []
    settled = packing.settle(asked, base, base.model, loop.state.data, lambda notice: told.append(notice.text))
    assert settled.setting.packing == (factor == 1.0) and (not told) == (factor == 1.0)
    if told:
        assert told[0].startswith("batches are padded, not packed: two rows packed one behind another have a loss of")
        asked.recipe = SimpleNamespace(train=TrainSettings(packing=True))
        with pytest.raises(UsageError, match=r"train\.packing: two rows packed .* each alone; drop it"):
            packing.settle(asked, base, base.model, loop.state.data, lambda notice: None)


def test_a_trained_token_that_is_lost_in_packing_is_found(tmp_path: Path) -> None:
    loop = build(tmp_path, True)
    loss = loop.plan.task.loss

    def lossy(model: Any, batch: Any, setting: Any) -> Any:
        found = loss(model, batch, setting)
        return Loss(found.sum, found.weight - len(batch.get("lengths", ())) + 1)

    plan: Any = loop.plan
    plan.task.loss = lossy
    found = packing.compare(loop.state.predictor, loop.state.data.examples)
    assert found is not None and "two rows packed one behind another have" in found and "trained tokens" in found
