"""`--no-third-party`: of others' plugins nothing is imported, wherever the flag stands, and they are listed as such."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_plugins import API, Install, adapters
from terminal import Terminal

from pefttool.config import plugins
from pefttool.config.plugins import ALLOW_LIST, NO_THIRD_PARTY, OWN

LOUD = API + "import os\nos.environ['ACME_RAN'] = 'yes'\n"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_RAN", "no")
    monkeypatch.delenv(NO_THIRD_PARTY, raising=False)


def test_only_what_pefttool_ships_is_imported(install: Install) -> None:
    install("acme-tools", LOUD, plugin="acme")
    loaded = plugins.load(third_party=False)
    assert {plugin.distribution for plugin in loaded.loaded} == {OWN}
    assert "acme" in [found.entry_point.name for found in loaded.left_out]
    assert os.environ["ACME_RAN"] == "no"
    assert "acme" in [plugin.name for plugin in plugins.load().loaded]
    assert os.environ["ACME_RAN"] == "yes"


def test_no_list_brings_them_back(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("acme-tools", LOUD, plugin="acme")
    assert plugins.load(only=["acme"], third_party=False).loaded == ()
    monkeypatch.setenv(ALLOW_LIST, "acme")
    monkeypatch.setenv(NO_THIRD_PARTY, "1")
    assert plugins.load().loaded == ()
    assert os.environ["ACME_RAN"] == "no"
    for off in ("", "0"):
        monkeypatch.setenv(NO_THIRD_PARTY, off)
        assert [plugin.name for plugin in plugins.load().loaded] == ["acme"]


def test_a_stranger_with_the_name_of_a_plugin_of_ours_does_not_stand_in_its_way(install: Install) -> None:
    """With both, neither loads; without others, ours does."""
    install("acme-lora", LOUD, plugin="lora")
    both, ours = plugins.load(only=["lora"]), plugins.load(only=["lora"], third_party=False)
    assert both.loaded == () and "acme-lora 1.0" in both.complaints[0]
    assert [plugin.owner.split()[0] for plugin in ours.loaded] == [OWN] and not ours.complaints
    assert os.environ["ACME_RAN"] == "no"


def test_names_that_look_like_ours_are_others(install: Install) -> None:
    for name in ("pefttool-lora", "pefttool2", "my-pefttool"):
        install(name, LOUD, plugin=name.replace("-", ""))
    loaded = plugins.load(third_party=False)
    assert {"pefttoollora", "pefttool2", "mypefttool"} <= {found.entry_point.name for found in loaded.left_out}
    assert os.environ["ACME_RAN"] == "no"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-third-party", "adapters", "--json"],
        ["adapters", "--no-third-party", "--json"],
        ["adapters", "show", "lora", "--json", "--no-third-party"],
        ["--help", "--no-third-party"],
        ["recipe", "--schema", "--no-third-party"],
    ],
    ids=" ".join,
)
def test_wherever_the_flag_stands(install: Install, terminal: Terminal, arguments: list[str]) -> None:
    install("acme-tools", LOUD, plugin="acme")
    terminal.allow("acme", "lora")
    code, out, err = terminal.run(*arguments)
    assert code == 0 and out and not err
    assert os.environ["ACME_RAN"] == "no"


def test_a_command_of_theirs_is_unknown(install: Install, terminal: Terminal) -> None:
    install("acme-tools", LOUD + "from pefttool import hookimpl\n@hookimpl\ndef register_commands(cli): ...\n", "acme")
    terminal.allow("acme", "lora")
    code, _, err = terminal.run("acme-verb", "--no-third-party")
    assert code == 2 and "unknown command 'acme-verb'" in err[0]
    assert os.environ["ACME_RAN"] == "no"


def test_they_are_listed_as_left_out(install: Install, terminal: Terminal) -> None:
    install("acme-tools", adapters("bitfit"), plugin="acme", version="2.0")
    terminal.allow("acme", "lora")
    shown = json.loads(terminal.run("plugins", "--json", "--no-third-party")[1])
    assert [plugin["name"] for plugin in shown["plugins"]] == ["lora"]
    assert {"name": "acme", "distribution": "acme-tools", "version": "2.0"} in shown["left_out"]
    lines = terminal.run("plugins", "--no-third-party")[1].splitlines()
    assert any("acme" in line and "left out by --no-third-party" in line for line in lines)
    assert json.loads(terminal.run("plugins", "--json")[1])["left_out"] == []


def test_as_a_command(install: Install, tmp_path: Path) -> None:
    site = install("acme-tools", f"raise SystemExit({str(tmp_path)!r})", plugin="acme")
    done = subprocess.run(
        [sys.executable, "-m", "pefttool", "adapters", "--no-third-party"],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and "lora" in done.stdout and not done.stderr
