"""After the last step: whatever fails there, nothing that was trained is lost, and `resume` does the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import case_models
import pytest

from pefttool.cli import entry
from pefttool.export import check as checking
from pefttool.forecast import forecast
from pefttool.inference import before_after
from pefttool.runs import artefacts, model_card, run_folder, saved_files

STEPS = ("adapter", "files", "answers", "before", "memory", "metrics", "card")
FAULTS: dict[str, tuple[Any, str]] = {
    "adapter": (artefacts, "_save_adapter"),
    "files": (saved_files, "check"),
    "answers": (before_after.Comparison, "answers"),
    "before": (before_after.Comparison, "before"),
    "memory": (forecast, "compare"),
    "metrics": (artefacts, "write_metrics"),
    "card": (model_card, "write"),
}
Run = Callable[..., int]


def broken(*args: Any, **kwargs: Any) -> Any:
    raise ValueError("broken here")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "films.csv"
    lines = [f"{'a gem' if n % 2 else 'dull'} number {n},{'good' if n % 2 else 'bad'}" for n in range(24)]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


@pytest.fixture
def typed(rows: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(entry.TRACEBACK, raising=False)

    def run(folder: Path, *more: str, check: str = "files") -> int:
        given = ["--model", str(case_models.folder("bert")), "--data", str(rows), "--adapter", "lora"]
        keys = ("train.max_steps=4", "train.batch_size=4", "train.evaluate_every=2", f"check={check}")
        return entry.execute(["run", "--out", str(folder), *given, *(f for k in keys for f in ("-o", k)), *more])

    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        typed.__wrapped__(rows, patch, folder.parent)(folder)  # type: ignore[attr-defined]
    return folder


def adapter(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "adapter").iterdir())}


def metrics(folder: Path) -> Any:
    found = json.loads((folder / "metrics.json").read_text())
    for key in ("simulated_bytes", "measured_bytes"):  # another run's allocator
        assert found["memory"].pop(key, 1) > 0
    return found


def steps_done(folder: Path) -> int:
    return sum('"StepDone"' in line for line in (folder / "events.jsonl").read_text().splitlines())


@pytest.mark.parametrize("step", STEPS)
def test_what_fails_loses_nothing_and_is_done_later(
    step: str,
    typed: Run,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(*FAULTS[step], broken)
        assert typed(folder) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "training is done, but" in said and "ValueError: broken here" in said
    assert f"go on with `pefttool resume {folder}`, which does not train again" in said
    if step != "adapter":
        assert adapter(folder) | {"README.md": b""} == adapter(undisturbed) | {"README.md": b""}
    if step != "metrics":
        kept = json.loads((folder / "metrics.json").read_text())
        assert kept["after"] == metrics(undisturbed)["after"]
        assert set(kept["unfinished"].values()) == {"ValueError: broken here"}
    with pytest.raises(Exception, match="holds an unfinished run"):
        run_folder.may_start(folder)

    trained = steps_done(folder)
    assert entry.execute(["resume", str(folder)]) == 0
    assert steps_done(folder) == trained == 4
    assert adapter(folder) == adapter(undisturbed)
    assert metrics(folder) == metrics(undisturbed)
    assert (folder / "metrics.json").read_bytes().count(b"_bytes") == 2  # what the rehearsal measured is known still
    capsys.readouterr()
    assert entry.execute(["resume", str(folder)]) == 2
    assert "is finished: there is nothing to resume" in capsys.readouterr().err


def test_two_faults_are_both_told(
    typed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(before_after.Comparison, "answers", broken)
    monkeypatch.setattr(forecast, "compare", broken)
    assert typed(tmp_path / "run") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "answers failed (ValueError: broken here)" in said and "memory failed (ValueError: broken here)" in said


def test_a_check_that_fails_is_made_again(
    typed: Run, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(checking, "_after_run", broken)
        assert typed(folder, check="process") == 1
    out, err = capsys.readouterr()
    assert "its check failed (ValueError: broken here): repeat it with `pefttool resume" in err
    assert "held-out accuracy" in out and adapter(folder) == adapter(undisturbed)
    assert not (folder / "check.json").exists()
    assert entry.execute(["resume", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "is finished; checked: the saved adapter is whole, and answers as the trained model did" in said
    assert "it answers alike without pefttool" in said
    assert json.loads((folder / "check.json").read_text())["clean_process"]
    assert entry.execute(["resume", str(folder)]) == 2


def test_a_last_evaluation_that_fails_is_made_again(
    typed: Run, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pefttool.training import loop

    calls: list[int] = []
    real = loop.evaluate

    def second(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return real(*args, **kwargs) if len(calls) < 2 else broken()

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", second)
        assert typed(folder) == 70
    assert f"step 4 is kept: go on with `pefttool resume {folder}`" in (folder / "events.jsonl").read_text()
    assert entry.execute(["resume", str(folder)]) == 0
    assert steps_done(folder) == 4 and adapter(folder) == adapter(undisturbed)
    assert metrics(folder) == metrics(undisturbed)


def test_an_observer_that_ends_the_process_does_not(
    typed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pefttool_report import console

    def leave(*args: Any, **kwargs: Any) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(console.Reporter, "on_event", leave)
    assert typed(tmp_path / "run") == 0
    assert run_folder.is_finished(tmp_path / "run")
    assert "SystemExit: 3; it is disabled" in (tmp_path / "run" / "events.jsonl").read_text()
