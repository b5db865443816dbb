"""A checkpoint is crashed at every call that it makes to the disk; what was not synced is lost, or a part of it is."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from disk import Crash, Disk, Operation, Record, recorded

from pefttool.data.batches import Position
from pefttool.runs import checkpoint
from pefttool.runs.progress import Best, Extras, Restorable, TrainingProgress


def training(step: int) -> Restorable:
    torch.manual_seed(step)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1.0)
    return Restorable(dict(model.named_parameters()), optimizer, schedule, torch.amp.GradScaler("cpu", enabled=False))


def save(folder: Path, step: int, keep: int = 1) -> None:
    """As the loop does: write it, then remove what is too old."""
    beside = Extras(best={"w": torch.arange(3)}, random=["{}"], identity={"data": "x"})
    checkpoint.save(folder, TrainingProgress(step, Position(0, step), Best(step, 0.5)), training(step), beside)
    checkpoint.prune(folder, keep, step)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Operation], dict[str, bytes], dict[str, bytes]]:
    """The calls of writing step 2 where step 1 is, and the files of each step."""
    root = tmp_path_factory.mktemp("whole")
    save(root / "checkpoints", 1)
    first = files(root)
    with recorded(Record(root)) as record:
        save(root / "checkpoints", 2)
    return record.operations, first, files(root)


def test_every_kind_of_call_is_seen(log: Any) -> None:
    operations, first, second = log
    counts = {name: sum(o.name == name for o in operations) for name in ("open", "write", "fsync", "rename", "mkdir")}
    written = len(second)
    assert counts["open"] == written and counts["mkdir"] == 1 and counts["rename"] == 1
    assert counts["write"] >= written and counts["fsync"] >= written + 3
    assert {path.split("/")[1] for path in first} == {"step-1"} and {path.split("/")[1] for path in second} == {
        "step-2"
    }


def left(log: Any, folder: Path, calls: int, survives: Callable[[int], bool], whole: Callable[[int], bool]) -> None:
    operations, first, _ = log
    disk = Disk()
    disk.start(first, ["", "checkpoints", "checkpoints/step-1"])
    for operation in operations[:calls]:
        disk.do(operation)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    disk.leave(folder, survives, whole)


def never(_: int) -> bool:
    return False


def always(_: int) -> bool:
    return True


@pytest.mark.parametrize("names", [never, always])
@pytest.mark.parametrize("contents", [never, always])
def test_a_crash_at_any_call_leaves_a_whole_one(log: Any, tmp_path: Path, names: Any, contents: Any) -> None:
    """Either the old one or the new one, to the byte: and both can be gone on with (test_resume)."""
    operations, first, second = log
    found = []
    for calls in range(len(operations) + 1):
        left(log, tmp_path / "disk", calls, names, contents)
        found.append(_newest(tmp_path / "disk", first, second))
    assert found[0] == 1 and found[-1] == 2 and found == sorted(found)


def test_a_crash_leaves_a_whole_one_whatever_is_lost(log: Any, tmp_path: Path) -> None:
    """Any part of what was not synced may be there, in any combination."""
    operations, first, second = log
    draw = random.Random(0)
    for _ in range(300):
        calls = draw.randrange(len(operations) + 1)
        lost = {i: draw.random() < 0.5 for i in range(200)}
        cut = {i: draw.random() < 0.5 for i in range(200)}
        left(log, tmp_path / "disk", calls, lambda i, lost=lost: lost[i], lambda i, cut=cut: cut[i])
        _newest(tmp_path / "disk", first, second)


def _newest(root: Path, first: dict[str, bytes], second: dict[str, bytes]) -> int:
    path, _ = checkpoint.newest(root / "checkpoints")
    assert path is not None, files(root).keys()
    step = int(path.name.removeprefix("step-"))
    expected = {1: first, 2: second}[step]
    held = files(root)
    assert {name: held[name] for name in expected} == expected
    return step


def test_a_process_that_dies_at_any_call_leaves_a_whole_one(log: Any, tmp_path: Path) -> None:
    """The same without loss: the next save finds what is left of this one, and succeeds."""
    operations, first, second = log
    for calls in range(len(operations)):
        root = tmp_path / str(calls)
        save(root / "checkpoints", 1)
        with pytest.raises(Crash), recorded(Record(root, crash_at=calls)):
            save(root / "checkpoints", 2)
        _newest(root, first, second)
        save(root / "checkpoints", 2)
        assert _newest(root, first, second) == 2


def test_a_full_disk_at_any_call_is_an_error_and_leaves_the_old_one(log: Any, tmp_path: Path) -> None:
    operations, first, second = log
    failed = 0
    for calls in range(len(operations)):
        root = tmp_path / str(calls)
        save(root / "checkpoints", 1)
        full = OSError(errno.ENOSPC, "No space left on device")
        with recorded(Record(root, fail_at=calls, error=full)):
            try:
                save(root / "checkpoints", 2)
            except OSError as error:
                assert error is full
                failed += 1
        _newest(root, first, second)
        assert not list((root / "checkpoints").glob(".*")) or operations[calls].name in ("unlink", "rmdir")
        save(root / "checkpoints", 3)
        assert checkpoint.newest(root / "checkpoints")[0] == root / "checkpoints" / "step-3"
    assert failed >= sum(operation.name in ("open", "write", "fsync", "rename", "mkdir") for operation in operations)
