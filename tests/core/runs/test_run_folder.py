"""Run folders: who may start where, what can be gone on with, and that a lock dies with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pefttool.api.errors import Refused, UsageError
from pefttool.api.values import Row
from pefttool.config import emitter
from pefttool.data.batches import Position
from pefttool.runs import checkpoint, resuming, run_folder
from pefttool.runs.progress import Best, Restorable, TrainingProgress
from pefttool.runs.resuming import Resume


def save(folder: Path, step: int) -> Path:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1.0)
    live = Restorable({"w": torch.ones(2)}, optimizer, schedule, torch.amp.GradScaler("cpu", enabled=False))
    return checkpoint.save(folder / run_folder.CHECKPOINTS, TrainingProgress(step, Position(), Best()), live)


def unfinished(folder: Path, *steps: int) -> Path:
    folder.mkdir()
    for name in (run_folder.LOCK, run_folder.RECIPE, run_folder.EVENTS):
        (folder / name).touch()
    (folder / ".step-3.partial").mkdir()
    for step in steps:
        save(folder, step)
    return folder


def test_nothing_there_or_nothing_in_it(tmp_path: Path) -> None:
    run_folder.may_start(tmp_path / "none")
    run_folder.may_start(tmp_path)
    with run_folder.locked(tmp_path):
        run_folder.may_start(tmp_path)


def test_a_stranger_s_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / run_folder.RECIPE).write_text("mine")
    with pytest.raises(UsageError, match="exists and is not empty: choose another --out, or remove it"):
        run_folder.may_start(tmp_path)
    folder = unfinished(tmp_path / "run")
    (folder / "thesis.tex").touch()
    with pytest.raises(UsageError, match="exists and is not empty"):
        run_folder.may_start(folder)
    with pytest.raises(UsageError, match="exists and is not empty"):
        run_folder.may_start(folder / "thesis.tex")


def test_without_a_checkpoint_it_is_started_over(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "run")
    run_folder.may_start(folder)
    assert run_folder.clear(folder) and [p.name for p in folder.iterdir()] == [run_folder.LOCK]
    assert not run_folder.clear(folder)
    (folder / ".git").mkdir()  # somebody's, and no run's
    run_folder.may_start(folder)
    assert not run_folder.clear(folder) and (folder / ".git").is_dir()


def test_with_a_checkpoint_resume_is_named(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "run", 2, 4)
    with pytest.raises(UsageError, match=rf"newest checkpoint is step-4: go on with `pefttool resume {folder}`"):
        run_folder.may_start(folder)
    (folder / "checkpoints" / "step-4" / "state.json").write_text("{}")
    path, skipped = run_folder.to_resume(folder)
    assert path.name == "step-2" and len(skipped) == 1 and "state.json is damaged" in skipped[0]
    (folder / "checkpoints" / "step-2" / "COMPLETE").unlink()
    run_folder.may_start(folder)
    with pytest.raises(UsageError, match=r"has no checkpoint that is whole \(.*state.json is damaged.*: start again"):
        run_folder.to_resume(folder)


def test_what_is_finished_is_finished(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "run", 2)
    (folder / run_folder.METRICS).touch()
    with pytest.raises(UsageError, match="exists and is not empty"):
        run_folder.may_start(folder)
    with pytest.raises(UsageError, match="is finished: there is nothing to resume; use it with `pefttool predict"):
        run_folder.to_resume(folder)
    with pytest.raises(UsageError, match=r"is no run folder: it has no recipe\.yaml"):
        run_folder.to_resume(tmp_path)


def test_the_way_on(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "run")
    assert run_folder.way_on(folder) == "start again with the same command (no checkpoint was written)"
    save(folder, 2)
    assert run_folder.way_on(folder) == f"go on with `pefttool resume {folder}`"
    (folder / run_folder.METRICS).touch()
    assert run_folder.way_on(folder) == f"use it with `pefttool predict {folder}`: it is finished"


def test_who_found_an_older_checkpoint_asks_again(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "run", 2)
    resume = Resume(folder, folder / "checkpoints" / "step-2")
    resuming.require_newest(resume)
    save(folder, 4)
    with pytest.raises(UsageError, match="has gone on meanwhile, to step-4: give the command again"):
        resuming.require_newest(resume)
    (folder / run_folder.METRICS).touch()
    with pytest.raises(UsageError, match="is finished"):
        resuming.require_newest(resume)


def test_pictures_and_labels_are_part_of_the_data(tmp_path: Path) -> None:
    """A table's bytes do not tell that a picture which it names was drawn anew, nor a folder's that one moved."""
    picture = tmp_path / "a.png"
    task: Any = SimpleNamespace(files=lambda values, options: [values["image"]])

    def contents(label: str) -> dict[str, str]:
        rows: Any = SimpleNamespace(train=(Row({"image": str(picture), "label": label}),), eval=(), options=None)
        return resuming._contents(SimpleNamespace(task=task), rows)  # type: ignore[arg-type]

    picture.write_bytes(b"one")
    first = contents("a")
    assert contents("a") == first and contents("b")["rows"] != first["rows"]
    picture.write_bytes(b"another")
    assert contents("a")["files"] != first["files"] and contents("a")["rows"] == first["rows"]


def test_one_command_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(UsageError, match="is in use by another pefttool command")
    with run_folder.locked(tmp_path), refused, run_folder.locked(tmp_path):
        pass
    with run_folder.locked(tmp_path):
        pass


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pefttool.runs import run_folder\n"
        f"with run_folder.locked(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match="is in use"), run_folder.locked(tmp_path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for _ in range(50):  # the kernel closes its files a moment later
        try:
            with run_folder.locked(tmp_path):
                return
        except UsageError:
            time.sleep(0.01)
    pytest.fail("the lock outlived its process")


def test_a_line_that_a_crash_left_unfinished_goes(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for text, left in (("a\nb\nc", "a\nb\n"), ("a\n", "a\n"), ("a", ""), ("", "")):
        path.write_text(text)
        emitter.trim(path)
        assert path.read_text() == left


def test_differences_name_key_and_values() -> None:
    then = {"recipe": {"train": {"seed": 1, "epochs": 2.0}}, "data": "a" * 64, "packages": {"torch": "2.1", "old": "1"}}
    now = {"recipe": {"train": {"seed": 1, "epochs": 3.0}}, "data": "b" * 64, "packages": {"torch": "2.2", "new": "1"}}
    expected = [
        "recipe.train.epochs: 2.0 then, 3.0 now",
        f"data: {'a' * 12} then, {'b' * 12} now",
        "packages.torch: '2.1' then, '2.2' now",
        "packages.old: '1' then, nothing now",
        "packages.new: nothing then, '1' now",
    ]
    resume = Resume(Path("run"), Path("run/step-1"), identity=then)
    with pytest.raises(Refused) as found:
        resuming.check(resume, now)
    *lines, way_out = found.value.complaints
    assert lines == expected and way_out == "run would not go on as it began: undo that, or add --allow-changed"
    assert resuming.check(Resume(Path("run"), Path("x"), (), True, then), now) == expected
    assert resuming.check(resume, then) == []
