"""What plugins register, by name; clashes and misfits are one line that names the packages and the way out."""

from __future__ import annotations

import pytest
from fake_plugins import ADAPTER, HOOK, Install, adapters

from pefttool.api.errors import PluginError, UsageError
from pefttool.config import registry as registries
from pefttool.config.registry import Registry


def build(*names: str) -> Registry:
    return registries.build(only=names)


def only_complaint(registry: Registry) -> str:
    (complaint,) = registry.complaints
    assert "\n" not in complaint
    return complaint


def test_objects_are_found_by_name_with_their_owner(install: Install) -> None:
    install("acme", adapters("zebra", "ant"), version="1.2")
    registry = build("acme")
    assert list(registry.adapters) == ["ant", "zebra"]
    assert registry.adapters["ant"].name == "ant"
    assert registry.adapters.owner("ant").owner == "acme 1.2"
    assert registry.kinds["adapters"] is registry.adapters
    assert not registry.complaints and len(registry.tasks) == 0


def test_an_unknown_name_says_what_there_is(install: Install) -> None:
    install("acme", adapters("bitfit", "zebra"))
    with pytest.raises(
        UsageError, match=r"unknown adapter 'bitfot'.*did you mean 'bitfit'\? \(allowed: bitfit, zebra\)"
    ):
        build("acme").adapters["bitfot"]


def test_two_plugins_with_one_adapter_name_clash_and_keep_the_rest(install: Install) -> None:
    install("acme-one", adapters("bitfit", "ant"), plugin="one", version="1.0")
    install("acme-two", adapters("bitfit", "bee"), plugin="two", version="2.0")
    registry = build("one", "two")
    assert list(registry.adapters) == ["ant", "bee"]
    complaint = only_complaint(registry)
    for part in ("adapter 'bitfit'", "acme-one 1.0", "acme-two 2.0", "--without one", "--without two", "uninstall"):
        assert part in complaint
    with pytest.raises(PluginError, match=r"acme-one 1\.0.*acme-two 2\.0"):
        registry.adapters["bitfit"]
    assert list(registries.build(without=["one"], only=["one", "two"]).adapters) == ["bee", "bitfit"]


def test_a_clash_of_three_names_all_three(install: Install) -> None:
    for number in ("one", "two", "three"):
        install(f"acme-{number}", adapters("bitfit"), plugin=number)
    complaint = only_complaint(build("one", "two", "three"))
    assert all(f"acme-{number} 1.0" in complaint for number in ("one", "two", "three"))


def test_one_plugin_with_the_same_name_twice_is_its_own_mistake(install: Install) -> None:
    install("acme", adapters("bitfit", "bitfit"))
    complaint = only_complaint(build("acme"))
    assert "registered 2 times by plugin 'acme' from acme 1.0" in complaint


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('two\\nlines')", "failed in register_adapters: ValueError: two lines"),
        ("raise SystemExit(1)", "failed in register_adapters: SystemExit: 1"),
        ("return None", "failed in register_adapters: TypeError"),
        ("return [Fake]", "expected an instance of pefttool.Adapter with a name"),
        ("return ['bitfit']", "registered 'bitfit' as adapter: expected an instance"),
        ("return [named('')]", "expected an instance of pefttool.Adapter with a name"),
        ("return [Fake()]", "expected an instance of pefttool.Adapter with a name"),
        ("return [named('x', Options=dict)]", "its Options are no subclass of pefttool.Options"),
        ("return [named('x', Options=Named)]", "its Options have a field 'name'"),
        ("return [named('x', name=property(lambda self: 1 / 0))]", "ZeroDivisionError"),
        ("return [named('x', name=property(lambda self: 7))]", "with a name"),
    ],
)
def test_what_does_not_fit_is_one_line_and_the_rest_goes_on(install: Install, body: str, reason: str) -> None:
    named = "from pefttool import Options\nclass Named(Options):\n    name: str = 'x'\n"
    install("acme-bad", HOOK + ADAPTER + named + f"@hookimpl\ndef register_adapters():\n    {body}\n", plugin="bad")
    install("acme-good", adapters("ant"), plugin="good")
    registry = build("bad", "good")
    assert list(registry.adapters) == ["ant"]
    complaint = only_complaint(registry)
    assert reason in complaint
    assert "plugin 'bad' from acme-bad 1.0" in complaint and "--without bad" in complaint


def test_one_failing_hook_leaves_the_plugins_other_hooks(install: Install) -> None:
    install("acme", adapters("ant") + "@hookimpl\ndef register_tasks():\n    raise ValueError('no')\n")
    registry = build("acme")
    assert list(registry.adapters) == ["ant"]
    assert "failed in register_tasks" in only_complaint(registry)


def test_first_party_objects_have_no_complaints(registry: Registry) -> None:
    assert not [c for c in registry.complaints if "pefttool 0" in c]
    assert {"lora", "prefix", "head", "full"} <= set(registry.adapters)
    assert {"text-classification", "causal-lm", "chat"} <= set(registry.tasks)
    assert {"nf4", "fp4", "int8"} <= set(registry.quantizers)
