"""Whole runs under an audit hook, offline: nothing is unpickled, made up and run, connected to or started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from audited import Act
from fake_hub import COMMIT, REPOSITORY, Client, FakeHub
from fake_plugins import ADAPTER, HOOK, Install

from pefttool.config.plugins import ALLOW_LIST

AUDITED = Path(__file__).parents[1] / "support" / "audited.py"
ROWS = [{"text": text, "label": label} for text, label in zip("abcdefghijkl", "xyxyxyxyxyxy", strict=True)]


@dataclass(frozen=True)
class Allowed:
    """An act that is all right: of this event, through this package, in these details, by this owner ("": any); why."""

    event: str
    via: str
    detail: str
    reason: str
    owner: str = ""


SIMULATING = "torch defines named tuples and wrappers of operators where it first meets them: here, as it simulates"
CLEAN = (
    "`pefttool check` loads the adapter in a process of its own, which has never heard of pefttool: that is its point"
)
CHECK = Allowed("subprocess.Popen", "", sys.executable, CLEAN, "pefttool.export.clean_process:run")
#: What pefttool's own code may cause. It is short, and nothing in it is a pickle, a connection or a process. Not met
#: here, and exempt where they are asked for: torch.compile (`train.compile`), which runs a compiler and keeps what it
#: made, and the rendezvous of several processes (`torchrun`), which is a connection.
ALLOWED: tuple[Allowed, ...] = (
    Allowed("exec", "torch", "<string>", SIMULATING),
    Allowed("compile", "torch", "<string>", SIMULATING),
    CHECK,
)
#: What libraries do while they are imported, whoever imports them.
ALLOWED_AT_IMPORT: tuple[Allowed, ...] = ()


@dataclass(frozen=True)
class Watched:
    """What a process did: exit codes of its commands, and its acts."""

    codes: list[int]
    acts: list[Act]
    said: str


def watched(commands: Sequence[Sequence[str]], folder: Path, environment: dict[str, str]) -> Watched:
    out = folder / "acts.json"
    done = subprocess.run(
        [sys.executable, str(AUDITED), json.dumps([list(c) for c in commands]), str(out)],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert out.is_file(), done.stderr
    found = json.loads(out.read_text())
    acts = [Act(*(act[field] for field in Act._fields)) for act in found["acts"]]
    return Watched(found["codes"], acts, done.stdout + done.stderr)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Watched, Path]:
    """A model of the hub, fetched once and used offline: trained with checkpoints, evaluated, asked, and looked at."""
    from pefttool.testing.models import tiny_encoder

    folder = tmp_path_factory.mktemp("audited")
    model = tiny_encoder(folder / "model")
    hub = FakeHub({path.name: path.read_bytes() for path in model.iterdir()})
    client = Client(folder / "client", hub.url)
    try:
        assert client.run().error is None
    finally:
        hub.close()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = ("train.max_steps=2", "train.checkpoint_every=1", "train.batch_size=2", "train.sequence_length=16")
    small = (*settings, "check=files", "device=cpu", "data.eval_fraction=0.3")
    options = [part for one in small for part in ("-o", one)]
    given = ["--adapter", "lora", "--model", REPOSITORY, "--data", "rows.jsonl", "--task", "text-classification"]
    commands = [
        ["data", "check", "rows.jsonl", "--task", "text-classification"],
        ["plan", *given],
        ["run", *given, *options, "--out", "out"],
        ["eval", "out", "--json"],
        ["predict", "out", "--text", "a"],
        ["unfinish", "out", "again"],
        ["resume", "again"],
        ["merge", "out", "--out", "merged"],
        ["check", "out"],
    ]
    return watched(commands, folder, {**client.environment, "HF_HUB_OFFLINE": "1"}), folder


def unexplained(acts: list[Act], allowed: Sequence[Allowed]) -> list[Act]:
    def fits(act: Act, one: Allowed) -> bool:
        same = (act.event, act.via) == (one.event, one.via) and act.detail.startswith(one.detail)
        return same and one.owner in ("", act.owner)

    return [act for act in acts if not any(fits(act, one) for one in allowed)]


def test_every_command_works_offline(run: tuple[Watched, Path]) -> None:
    found, folder = run
    assert found.codes == [0] * len(found.codes), found.said
    assert (folder / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert list((folder / "out" / "checkpoints").glob("step-*/COMPLETE"))
    weights = "adapter/adapter_model.safetensors"
    assert (folder / "again" / weights).read_bytes() == (folder / "out" / weights).read_bytes()


def test_pefttool_causes_nothing_of_the_kind(run: tuple[Watched, Path]) -> None:
    own = [act for act in run[0].acts if act.owner and not act.importing]
    assert unexplained(own, ALLOWED) == []


def test_libraries_do_little_of_the_kind_at_import(run: tuple[Watched, Path]) -> None:
    """No connection, no unpickling of anything but their own, no process but those that ask about the machine."""
    rest = [act for act in run[0].acts if act.importing or not act.owner]
    rest = [act for act in rest if act.event not in ("exec", "compile", "marshal.loads")]
    assert unexplained(rest, ALLOWED_AT_IMPORT) == []


def test_the_lists_hold_nothing_that_does_not_happen(run: tuple[Watched, Path]) -> None:
    for allowed in (ALLOWED, ALLOWED_AT_IMPORT):
        for one in allowed:
            assert len(unexplained(run[0].acts, [one])) < len(run[0].acts), one
            assert one.reason


def test_the_run_folder_pins_the_hubs_commit(run: tuple[Watched, Path]) -> None:
    """The recipe repeats the run on the same model, whatever the branch holds by then."""
    folder = run[1] / "out"
    pinned = f"{REPOSITORY}@{COMMIT}"
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["model"] == pinned
    base = json.loads((folder / "adapter" / "pefttool.json").read_text())["base"]
    assert (base["reference"], base["revision"]) == (pinned, COMMIT)
    assert json.loads((folder / "plan.json").read_text())["model"]["revision"] == COMMIT


def test_no_file_of_a_run_is_a_pickle(run: tuple[Watched, Path]) -> None:
    files = [path for path in (run[1] / "out").rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert path.suffix in (".safetensors", ".json", ".jsonl", ".yaml", ".py", ".jinja", ".txt", ".md", ""), path
        assert not path.read_bytes().startswith((b"\x80", b"PK", b"\x1f\x8b")), path


MISDEEDS = """
import os, pickle, socket, subprocess, sys
class Trap:
    def __reduce__(self):
        return (print, ("unpickled",))
def misbehave():
    pickle.loads(pickle.dumps(Trap()))
    exec("x = 1")
    socket.socket().close()
    subprocess.run([sys.executable, "-c", ""])
    os.system("true")
@hookimpl
def register_adapters():
    misbehave()
    return [Fake()]
"""


def test_the_hook_has_teeth(install: Install, tmp_path: Path) -> None:
    """A plugin that does all of it is caught at each, through the frame of pefttool that called it."""
    site = install("acme-trap", HOOK + ADAPTER + MISDEEDS, plugin="trap")
    environment = {**os.environ, "PYTHONPATH": str(site), ALLOW_LIST: "trap"}
    caught = watched([["adapters"]], tmp_path, environment).acts
    events = {act.event for act in unexplained([a for a in caught if not a.importing], ALLOWED)}
    assert {"pickle.find_class", "exec", "socket.__new__", "subprocess.Popen", "os.system"} <= events
    trapped = [act for act in caught if act.event == "pickle.find_class"]
    assert [(act.owner, act.detail) for act in trapped] == [("pefttool.config.registry:_collect", "builtins.print")]
    assert trapped[0].via.startswith("fake_acme_trap")


def test_what_a_file_holds_is_no_made_up_code() -> None:
    """Modules are compiled and executed, too: only what has no file counts."""
    from audited import _detail

    assert _detail("exec", (compile("1", __file__, "exec"),)) is None
    assert _detail("exec", (compile("1", "<string>", "exec"),)) == "<string>"
    assert _detail("compile", (b"1", "<template>")) == "<template>"
    assert _detail("compile", (None, "<frozen importlib._bootstrap>")) is None
