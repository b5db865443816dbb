"""Plugins are found through entry points, one by one: what is broken is one line, everything else keeps working."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from fake_plugins import API, HOOK, Install, adapters

from pefttool.api.errors import PluginError
from pefttool.config import plugins
from pefttool.config.plugins import ALLOW_LIST, Plugins

GOOD = API


def load(*names: str) -> Plugins:
    return plugins.load(only=names)


def names(loaded: Plugins) -> list[str]:
    return [plugin.name for plugin in loaded.loaded]


def only_complaint(loaded: Plugins) -> str:
    (complaint,) = loaded.complaints
    assert "\n" not in complaint
    return complaint


def test_a_plugin_knows_who_ships_it(install: Install) -> None:
    install("acme-tools", adapters("bitfit"), plugin="acme", version="2.3.4")
    loaded = load("acme")
    (plugin,) = loaded.loaded
    assert (plugin.name, plugin.distribution, plugin.version, plugin.api_version) == ("acme", "acme-tools", "2.3.4", 2)
    assert plugin.owner == "acme-tools 2.3.4"
    assert not loaded.complaints


def test_two_distributions_with_one_plugin_name_are_both_named_and_neither_loads(install: Install) -> None:
    install("acme-one", GOOD, plugin="twin", version="1.0")
    install("acme-two", GOOD, plugin="twin", version="2.0")
    install("acme-three", GOOD, plugin="other")
    loaded = load("twin", "other")
    assert names(loaded) == ["other"]
    complaint = only_complaint(loaded)
    assert "'twin'" in complaint and "acme-one 1.0" in complaint and "acme-two 2.0" in complaint
    assert "uninstall" in complaint


@pytest.mark.parametrize("second", ["acme_tools", "Acme.Tools", "acme-tools"])
def test_one_distribution_seen_twice_counts_once(install: Install, second: str) -> None:
    install("acme-tools", GOOD, plugin="acme", version="1.0")
    install(second, GOOD, plugin="acme", version="2.0")  # in front of the first: it shadows it, as for imports
    loaded = load("acme")
    assert [p.version for p in loaded.loaded] == ["2.0"]
    assert not loaded.complaints


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module_of_anyone", "ModuleNotFoundError: No module named 'no_such_module_of_anyone'"),
        ("raise RuntimeError('first line\\nsecond line')", "RuntimeError: first line second line"),
        ("def broken(:", "SyntaxError"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("", "states no API version, this pefttool has `pefttool_api_version = 2`"),
        ("pefttool_api_version = 1", "is written for API version 1, this pefttool has `pefttool_api_version = 2`"),
        ("pefttool_api_version = 3", "is written for API version 3, this pefttool has `pefttool_api_version = 2`"),
        ("pefttool_api_version = '1'", "is written for API version '1'"),
        (HOOK + "@hookimpl\ndef register_adapter(): return []", "did you mean 'register_adapters'?"),
        (HOOK + "@hookimpl\ndef register_adapters(colour): return []", "colour"),
        (HOOK + "@hookimpl(wrapper=True)\ndef register_adapters():\n    return (yield)", "is a wrapper"),
        (HOOK + "@hookimpl(hookwrapper=True)\ndef on_event(event):\n    yield", "is a wrapper"),
        (API + "def register_tasks(): return []", "'register_tasks' is not marked: put @pefttool.hookimpl above it"),
    ],
)
def test_a_plugin_that_does_not_load_is_one_line_and_the_others_go_on(install: Install, code: str, reason: str) -> None:
    install("acme-broken", code, plugin="broken", version="0.9")
    install("acme-good", GOOD, plugin="good")
    loaded = load("broken", "good")
    assert names(loaded) == ["good"]
    complaint = only_complaint(loaded)
    assert reason in complaint
    assert "plugin 'broken' from acme-broken 0.9" in complaint
    assert "--without broken" in complaint and "uninstall acme-broken" in complaint
    assert not loaded.manager.has_plugin("broken")


def test_a_refused_plugin_leaves_no_hook_behind(install: Install) -> None:
    """Its good hooks are registered before the misspelt one is seen."""
    install("acme-broken", adapters("ghost") + "@hookimpl\ndef register_taks():\n    return []\n", plugin="broken")
    loaded = load("broken")
    assert loaded.implementations("register_adapters") == []


def test_one_module_under_two_names_is_refused_once(install: Install) -> None:
    folder = install("acme", GOOD, plugin="first")
    points = next(folder.glob("*.dist-info")) / "entry_points.txt"
    points.write_text(points.read_text() + points.read_text().splitlines()[1].replace("first", "second") + "\n")
    loaded = load("first", "second")
    assert names(loaded) == ["first"]
    assert "plugin 'second' from acme 1.0" in only_complaint(loaded)


def test_hook_specname_is_honoured(install: Install) -> None:
    code = HOOK + "@hookimpl(specname='register_adapters')\ndef mine():\n    return []\n"
    install("acme", code)
    loaded = load("acme")
    assert not loaded.complaints
    assert [p.name for p, _ in loaded.implementations("register_adapters")] == ["acme"]


def test_nothing_depends_on_the_order_of_entry_points(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [
        install("acme-b", adapters("two"), plugin="b"),
        install("acme-a", adapters("one"), plugin="a"),
        install("acme-c", "import nothing_of_that_name", plugin="c"),
        install("acme-x", GOOD, plugin="twin"),
        install("acme-y", GOOD, plugin="twin"),
    ]
    rest = [path for path in sys.path if Path(path) not in folders]
    seen = set()
    for order in itertools.permutations(folders):
        monkeypatch.setattr(sys, "path", [*map(str, order), *rest])
        loaded = load("c", "b", "twin", "a")
        implementing = [p.name for p, _ in loaded.implementations("register_adapters")]
        seen.add((tuple(names(loaded)), loaded.complaints, tuple(implementing)))
    ((loaded_names, complaints, implementing_names),) = seen
    assert loaded_names == implementing_names == ("a", "b")
    assert len(complaints) == 2


@pytest.mark.parametrize(
    "content", [b"[pefttool]\nno equals sign\n", b"[pefttool]\n\xff = x\n", b"no section = x\n[pefttool\n=\n"]
)
def test_a_strangers_broken_metadata_does_not_end_the_command(install: Install, content: bytes) -> None:
    install("acme-good", GOOD, plugin="good")
    folder = install("acme-broken", GOOD, plugin="broken")
    info = next(folder.glob("*.dist-info"))
    (info / "entry_points.txt").write_bytes(content)
    loaded = load("good")
    assert names(loaded) == ["good"]
    for complaint in loaded.complaints:  # the third text is a legal one with nothing for pefttool in it
        assert str(info) in complaint and "reinstall" in complaint and "\n" not in complaint


def test_a_distribution_without_metadata_still_has_an_owner(install: Install) -> None:
    folder = install("acme", GOOD)
    next(folder.glob("*.dist-info/METADATA")).unlink()
    loaded = load("acme")
    assert [p.owner for p in loaded.loaded] == ["unknown ?"]


def test_without_leaves_a_plugin_out_unimported(install: Install) -> None:
    install("acme-bad", "raise RuntimeError('imported')", plugin="bad")
    install("acme-good", GOOD, plugin="good")
    loaded = plugins.load(without=["bad"], only=["bad", "good"])
    assert names(loaded) == ["good"]
    assert not loaded.complaints


def test_the_environment_is_an_allow_list(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        install(f"acme-{name}", GOOD, plugin=name)
    monkeypatch.setenv(ALLOW_LIST, " c, a,")
    assert names(plugins.load()) == ["a", "c"]
    assert names(plugins.load(without=["a"])) == ["c"]
    monkeypatch.setenv(ALLOW_LIST, "")
    assert names(plugins.load()) == []
    monkeypatch.delenv(ALLOW_LIST)
    assert {"a", "b", "c"} < set(names(plugins.load()))  # and the installed ones


def test_unknown_names_are_refused_all_at_once_with_where_they_were_given(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("acme", GOOD, plugin="acmebitfit")
    monkeypatch.setenv(ALLOW_LIST, "acmebitfit,acmebitfot,zzz")
    with pytest.raises(PluginError) as refused:
        plugins.load(without=["acmebitft"])
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("--without: plugin 'acmebitft' is not installed: did you mean 'acmebitfit'?")
    assert lines[1].startswith(f"{ALLOW_LIST}: plugin 'acmebitfot' is not installed: did you mean 'acmebitfit'?")
    assert lines[2].startswith(f"{ALLOW_LIST}: plugin 'zzz' is not installed: (allowed: ")


def test_first_party_plugins_load_through_the_same_door() -> None:
    loaded = plugins.load()
    ours = [plugin for plugin in loaded.loaded if plugin.distribution == "pefttool"]
    assert {"lora", "prefix", "head", "full", "text", "bnb", "report", "examples"} <= {p.name for p in ours}
    assert not [c for c in loaded.complaints if " from pefttool " in c]
