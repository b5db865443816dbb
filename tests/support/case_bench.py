"""What a case of `tests/cases` is given: its input, a model, and the command line in this process."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import case_models
import pytest

from pefttool.cli import entry
from pefttool.config.plugins import ALLOW_LIST

CASES = Path(__file__).parents[1] / "cases"
#: Four steps on the rows of a small file, short answers, and nothing that only a longer run needs.
QUICK = (
    *("-o", "train.max_steps=4", "-o", "train.batch_size=4", "-o", "train.rehearse=false"),
    *("-o", "data.eval_fraction=0.25", "-o", "check=files", "-o", "generation.max_new_tokens=8"),
)


@dataclass(frozen=True)
class Case:
    """One entry of a kind's index.toml.

    what     the fault, in a sentence
    seen     where it was met: a public report, or a trial of this project
    right    the right answer, worked out apart from pefttool
    command  what is typed, with `{input}`, `{inputs}` (the folder) and `{model:NAME}` in it: the case is then declared
             here; without it, `check(bench)` in NAME.py beside the index decides
    exit     the command's exit status
    says     what its output holds
    never    what it does not hold
    """

    kind: str
    name: str
    what: str
    seen: str
    right: str
    input: str = ""
    command: str = ""
    exit: int = 0
    says: list[str] = field(default_factory=list)
    never: list[str] = field(default_factory=list)

    @property
    def code(self) -> Path:
        return CASES / self.kind / f"{self.name}.py"

    @property
    def inputs(self) -> Path:
        return CASES / self.kind / "inputs"


def kinds() -> list[str]:
    return sorted(path.parent.name for path in CASES.glob("*/index.toml"))


def document(kind: str) -> dict[str, Any]:
    """A kind's index.toml: `about`, the kind in a line, and `cases` by name."""
    return tomllib.loads((CASES / kind / "index.toml").read_text(encoding="utf-8"))


def index(kind: str) -> list[Case]:
    """The cases of a kind. TypeError for a key that no case has, or that one lacks."""
    return [Case(kind, name, **entry) for name, entry in document(kind)["cases"].items()]


@dataclass(frozen=True)
class Answer:
    """`text` is everything that was printed: a sentence may stand on either stream."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return f"{self.out}\n{self.err}"


@dataclass(frozen=True)
class Run:
    """What a run left."""

    folder: Path
    answer: Answer

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    @cached_property
    def before(self) -> Mapping[str, float]:
        return dict(self.json("metrics.json")["before"])

    @cached_property
    def after(self) -> Mapping[str, float]:
        return dict(self.json("metrics.json")["after"])

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The held-out rows that were answered, one at least."""
        found: list[dict[str, Any]] = self.json("metrics.json")["samples"]
        assert found, "nothing was answered"
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of this type, such as DataReady, in their order."""
        lines = (self.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        return [event for event in map(json.loads, lines) if event["type"] == kind]

    @property
    def notices(self) -> list[str]:
        """What the run said, line by line."""
        return [event["text"] for event in self.events("Notice")]


class Bench:
    def __init__(
        self, case: Case, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.case, self.folder, self._capsys, self.monkeypatch = case, folder, capsys, monkeypatch
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PEFTTOOL_CACHE", str(folder / "cache"))
        monkeypatch.delenv(entry.TRACEBACK, raising=False)
        monkeypatch.delenv(ALLOW_LIST, raising=False)
        self._runs = 0

    def input(self, name: str | None = None) -> Path:
        """A file of this kind's folder `inputs`; by default the one that the index names."""
        path = self.case.inputs / (name or self.case.input)
        assert path.exists(), path
        return path

    def model(self, name: str) -> Path:
        """The folder of a tiny model (`case_models`). It is shared: copy what you change."""
        return case_models.folder(name)

    def write(self, name: str, *rows: Mapping[str, Any]) -> Path:
        """A JSONL file of these rows, in the case's own folder."""
        path = self.folder / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    def pefttool(self, *arguments: str | Path) -> Answer:
        """What the command line answers, in this process."""
        self._capsys.readouterr()
        code = entry.execute([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err, err
        return Answer(code, out, err)

    def run(self, *arguments: str | Path) -> Run:
        """`pefttool run` with QUICK before what is given, which must come to its end."""
        self._runs += 1
        folder = self.folder / f"run-{self._runs}"
        answer = self.pefttool("run", "--out", folder, *QUICK, *arguments)
        assert answer.code == 0, answer.text
        return Run(folder, answer)


def declared(case: Case, bench: Bench) -> None:
    """Run the command of a case that its index declares, and compare."""
    words = []
    for word in case.command.split():
        if word.startswith("{model:"):
            words.append(str(bench.model(word.removeprefix("{model:").removesuffix("}"))))
        else:
            words.append(word.replace("{inputs}", str(case.inputs)).replace("{input}", str(case.inputs / case.input)))
    quick = QUICK if words[0] == "run" else ()
    answer = bench.pefttool(words[0], *quick, *words[1:])
    assert answer.code == case.exit, answer.text
    text = " ".join(answer.text.split())
    for said in case.says:
        assert said in text, f"{said!r} is not said in: {answer.text}"
    for said in case.never:
        assert said not in text, f"{said!r} is said in: {answer.text}"
