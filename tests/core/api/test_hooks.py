"""One test for each hook: when it is called, how often, what becomes of what it returns and raises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_plugins import HOOK, Install, adapters

from pefttool.api.events import Notice
from pefttool.cli import entry
from pefttool.config import plugins
from pefttool.config import registry as registries
from pefttool.config.emitter import Emitter
from pefttool.config.plugins import ALLOW_LIST

#: Registers one object of an interface, and counts its calls in a file.
COUNTED = HOOK + (
    "from pathlib import Path\n"
    "from pefttool import {interface}\n"
    "@hookimpl\n"
    "def {hook}():\n"
    "    with Path({log!r}).open('a') as file: file.write('called ')\n"
    "    nothing = dict.fromkeys({interface}.__abstractmethods__, lambda *a: None)\n"
    "    return (type('X', ({interface},), {{**nothing, 'name': 'mine'}})() for _ in range(1))\n"
)


def check_registering(install: Install, tmp_path: Path, kind: str, interface: str) -> None:
    """Called once when the registry is built; any iterable is taken; the object is found under its name."""
    log = tmp_path / "log"
    install("acme", COUNTED.format(interface=interface, hook=f"register_{kind}", log=str(log)))
    registry = registries.build(only=["acme"])
    assert not registry.complaints
    assert list(registry.kinds[kind]) == ["mine"]
    assert registry.kinds[kind].owner("mine").name == "acme"
    assert all(len(registry.kinds[other]) == 0 for other in registry.kinds if other != kind)
    assert log.read_text() == "called "


def test_hook_register_adapters(install: Install, tmp_path: Path) -> None:
    check_registering(install, tmp_path, "adapters", "Adapter")


def test_hook_register_tasks(install: Install, tmp_path: Path) -> None:
    check_registering(install, tmp_path, "tasks", "Task")


def test_hook_register_quantizers(install: Install, tmp_path: Path) -> None:
    check_registering(install, tmp_path, "quantizers", "Quantizer")


def test_hook_register_formats(install: Install, tmp_path: Path) -> None:
    check_registering(install, tmp_path, "formats", "DataFormat")


def test_hook_register_sources(install: Install, tmp_path: Path) -> None:
    check_registering(install, tmp_path, "sources", "Source")


def test_hook_register_commands(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command runs, sees the registry of this command line, and its options are its own."""
    code = (
        "import click\nfrom pefttool.cli.common import current_registry\n@hookimpl\ndef register_commands(cli):\n"
        "    @cli.command()\n    @click.option('--times', type=int, default=1)\n"
        "    def count(times):\n        click.echo(list(current_registry().adapters) * times)\n"
    )
    install("acme", adapters("ant") + code)
    monkeypatch.setenv(ALLOW_LIST, "acme")
    assert entry.execute(["count", "--times", "2"]) == 0
    assert capsys.readouterr().out == "['ant', 'ant']\n"


def test_hook_on_event(install: Install, tmp_path: Path) -> None:
    """Every event reaches every observer after it is on disk; one that raises is disabled, the others go on."""
    seen, file = tmp_path / "seen", tmp_path / "events.jsonl"
    bad = "@hookimpl\ndef on_event(event):\n    raise ValueError('two\\nlines')\n"
    good = (
        "from pathlib import Path\n@hookimpl\ndef on_event(event):\n"
        f"    last = Path({str(file)!r}).read_text().splitlines()[-1]\n"
        f"    with Path({str(seen)!r}).open('a') as out: out.write(last + '\\n')\n"
        "    if getattr(event, 'text', '') == 'end': event.control.stop('enough')\n"
        "    return 'ignored'\n"
    )
    install("acme-bad", HOOK + bad, plugin="bad")
    install("acme-good", HOOK + good, plugin="good")
    emit = Emitter(plugins.load(only=["bad", "good"]))
    emit.open(file)
    emit(Notice(text="one"))
    assert emit.control.reason is None
    emit(Notice(text="end"))
    emit.close()
    assert emit.control.reason == "enough"
    texts = [json.loads(line)["text"] for line in seen.read_text().splitlines()]
    assert texts[0] == "one" and texts[-1] == "end" and len(texts) == 3
    assert "'bad'" in texts[1] and "acme-bad 1.0" in texts[1] and "ValueError: two lines" in texts[1]
    assert seen.read_text() == file.read_text()


def test_hook_on_event_is_for_rank_0_only(install: Install, tmp_path: Path) -> None:
    install("acme", HOOK + "@hookimpl\ndef on_event(event):\n    raise AssertionError('told')\n")
    emit = Emitter(plugins.load(only=["acme"]), rank=1)
    emit.open(tmp_path / "events.jsonl")
    emit(Notice(text="one"))
    emit.close()
    assert list(tmp_path.glob("*.jsonl")) == []
