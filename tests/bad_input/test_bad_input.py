"""More than 300 inputs that are wrong: each is answered in one to three lines that help, in time, and leaves nothing.

The corpus is in the modules beside this one, by area; `bad_entry.py` says what a good answer is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import bad_adapters
import bad_checkpoints
import bad_data
import bad_formats
import bad_models
import bad_plugins
import bad_recipes
import pytest
from bad_entry import SECONDS, Answer, Entry, faults

from pefttool.cli import entry as command_line
from pefttool.cli import group
from pefttool.config import plugins as plugin_loader

AREAS = (bad_recipes, bad_data, bad_formats, bad_models, bad_adapters, bad_checkpoints, bad_plugins)
ENTRIES: list[Entry] = [entry for area in AREAS for entry in area.ENTRIES]
FIND = plugin_loader.find
#: Of a run that stopped: they are made before what is wrong is met, and say that it did not finish.
UNFINISHED = {"recipe.yaml", "plan.json", "environment.json", "events.jsonl", "bad_rows.jsonl", "run.lock", ".lock"}


@pytest.fixture(scope="module", autouse=True)
def verbs() -> Iterator[None]:
    """Two verbs more: the stages that a run reaches late, without what comes before them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(group.VERBS, "load-data", group.Verb("bad_data:load_data", "Read rows."))
        patch.setitem(group.VERBS, "load-checkpoint", group.Verb("bad_checkpoints:load", "Load a checkpoint."))
        installed = FIND()
        patch.setattr(plugin_loader, "find", lambda complaints=None: installed)
        patch.delenv(command_line.TRACEBACK, raising=False)
        yield


class Runner:
    """Meets the entries in this process, in a folder of their own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def answer(self, given: Sequence[str]) -> Answer:
        self.capsys.readouterr()
        before = files(self.folder)
        code = command_line.execute(given)
        out, err = self.capsys.readouterr()
        left = sorted(path for path in files(self.folder) - before if Path(path).name not in UNFINISHED)
        assert not left, f"it leaves {left}"
        return Answer(code, out, err)


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    monkeypatch.chdir(tmp_path)
    return Runner(tmp_path, capsys)


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not {".cache", "__pycache__"} & set(path.parts)
    }


def judge(entry: Entry, answer: Answer) -> None:
    found = faults(entry, answer)
    assert not found, "\n".join([*found, f"the answer: {answer.err or answer.out}"])


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.plugins is None], ids=lambda entry: entry.name)
def test_it_is_answered(entry: Entry, runner: Runner) -> None:
    judge(entry, runner.answer(entry.make(runner.folder)))


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.plugins is not None], ids=lambda entry: entry.name)
def test_a_plugin_is_answered(entry: Entry, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_loader, "find", FIND)
    monkeypatch.setenv(plugin_loader.ALLOW_LIST, str(entry.plugins))
    before = set(sys.modules)
    given = entry.make(runner.folder)
    for site in bad_plugins.sites(runner.folder):
        monkeypatch.syspath_prepend(site)
    try:
        judge(entry, runner.answer(given))
    finally:
        for name in set(sys.modules) - before:
            if name.startswith("bad_"):
                del sys.modules[name]


def test_the_corpus_is_as_large_as_it_says() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len(names) == len(set(names)) >= 300
    assert all(entry.words for entry in ENTRIES)
    assert len([entry for entry in ENTRIES if entry.real]) == 20
    for area, least in zip(AREAS, (120, 100, 120, 50, 50, 35, 30), strict=True):
        assert len(area.ENTRIES) >= least, area.__name__


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.real], ids=lambda entry: entry.name)
def test_it_is_answered_as_a_command(entry: Entry, tmp_path: Path) -> None:
    given = entry.make(tmp_path)
    before = files(tmp_path)
    unset = (command_line.TRACEBACK, plugin_loader.ALLOW_LIST)
    environment = {k: v for k, v in os.environ.items() if k not in unset} | {"OMP_NUM_THREADS": "1"}
    if entry.plugins is not None:
        environment[plugin_loader.ALLOW_LIST] = entry.plugins
        environment["PYTHONPATH"] = os.pathsep.join(map(str, bad_plugins.sites(tmp_path)))
    done = subprocess.run(
        [sys.executable, "-m", "pefttool", *given],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    judge(entry, Answer(done.returncode, done.stdout, done.stderr))
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (Answer(0, "", "error: r.yaml: train.epochs: 0: give more"), "exit status 0"),
        (Answer(70, "", "error: KeyError: 'x' (in f, line 3): a bug in pefttool or a plugin, give"), "exit status 70"),
        (Answer(2, "", "error: r.yaml: train.epochs: 0: give more\n" * 4), "4 lines of answer"),
        (Answer(2, "", ""), "0 lines of answer"),
        (Answer(2, "", "error: r.yaml train.epochs: 0 is <class 'int'>: give more"), "it holds"),
        (Answer(2, "", "Traceback (most recent call last):\nerror: r.yaml: train.epochs: 0: give more"), "Traceback"),
        (Answer(2, "", "error: r.yaml: 0 is too few: give more"), "does not say 'train.epochs'"),
        (Answer(2, "", "error: r.yaml: train.epochs: 0 is too few"), "no next step"),
        (Answer(2, "half a table", "error: r.yaml: train.epochs: 0: give more"), "output in spite of the error"),
    ],
)
def test_the_judge_has_teeth(answer: Answer, fault: str) -> None:
    entry = Entry("x", lambda folder: [], ("r.yaml", "train.epochs"))
    assert not faults(entry, Answer(2, "", "error: r.yaml: train.epochs: 0 is too few: give more"))
    assert any(fault in found for found in faults(entry, answer))
