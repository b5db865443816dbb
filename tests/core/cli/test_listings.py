"""What `adapters`, `tasks`, ..., their `show`, and `recipe` print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from fake_plugins import ADAPTER, HOOK, Install
from fake_registry import PLUGIN, make
from pydantic import Field
from terminal import Terminal

from pefttool import Adapter, Options
from pefttool.cli.options import options
from pefttool.config.registry import Kind, Registered


class Nested(Options):
    deep: int = 1


class Sampler(Options):
    """Every shape of option that pydantic has a schema for."""

    r: int = Field(8, ge=1, lt=65, description="rank")
    mode: Literal["slow", "fast", 3] = Field("slow", description="how")
    scale: float | None = Field(None, gt=0, description="of the update")
    targets: list[str] | Literal["all"] = Field("all", description="modules")
    sizes: list[int] = Field([1], min_length=1, description="sizes")
    rates: dict[str, float] = Field({}, description="by name")
    pattern: str = Field("a", pattern="^a", description="text")
    on: bool = Field(False, description="switch")
    nested: Nested = Field(Nested(), description="more")
    needed: int = Field(description="no default")
    bare: Any = None


def test_options_are_derived_from_the_fields() -> None:
    kind = Kind("adapter", {"x": Registered(make(Adapter, name="x", Options=Sampler), PLUGIN)}, {})
    found = {o.name: (o.type, o.default_text, o.allowed, o.description) for o in options(kind, "x")}
    assert found == {
        "r": ("integer", "8", ">= 1 and < 65", "rank"),
        "mode": ("string or integer", '"slow"', '"slow", "fast", 3', "how"),
        "scale": ("number or null", "null", "> 0", "of the update"),
        "targets": ("list of string or string", '"all"', '"all"', "modules"),
        "sizes": ("list of integer", "[1]", "at least 1 items", "sizes"),
        "rates": ("mapping to number", "{}", "", "by name"),
        "pattern": ("string", '"a"', "matching ^a", "text"),
        "on": ("boolean", "false", "true, false", "switch"),
        "nested": ("Nested", '{"deep": 1}', "", "more"),
        "needed": ("integer", "(required)", "", "no default"),
        "bare": ("any", "null", "", ""),
    }


SHOWN = """
from pydantic import Field
from pefttool import Options
class Some(Options):
    r: int = Field(8, ge=1, description="the [bold]rank[/bold]")
@hookimpl
def register_adapters():
    return [named("ant", Options=Some)]
"""


def test_show_in_words_and_as_json(terminal: Terminal, install: Install) -> None:
    install("acme", HOOK + ADAPTER + SHOWN)
    terminal.allow("acme")
    code, out, err = terminal.run("adapters", "show", "ant")
    assert code == 0 and not err
    assert out.splitlines()[-1].split() == ["r", "integer", "8", ">=", "1", "the", "[bold]rank[/bold]"]
    code, out, _ = terminal.run("adapters", "show", "ant", "--json")
    shown = json.loads(out)
    assert shown["summary"] == "An adapter that does nothing." and shown["distribution"] == "acme"
    assert shown["options"] == [
        {
            "name": "r",
            "type": "integer",
            "required": False,
            "default": 8,
            "allowed": ">= 1",
            "description": "the [bold]rank[/bold]",
        }
    ]
    code, out, _ = terminal.run("adapters")
    assert out.splitlines()[1].split() == ["ant", "acme", "1.0", "An", "adapter", "that", "does", "nothing."]


def test_options_without_a_schema_name_their_plugin(terminal: Terminal, install: Install) -> None:
    body = "from pefttool import Options\nfrom typing import Callable\nclass Odd(Options):\n    f: Callable = len\n"
    hook = "@hookimpl\ndef register_adapters():\n    return [named('odd', Options=Odd)]\n"
    install("acme-odd", HOOK + ADAPTER + body + hook, plugin="odd")
    terminal.allow("odd")
    for arguments in (["adapters", "show", "odd"], ["recipe", "--schema"]):
        code, out, err = terminal.run(*arguments)
        assert code == 2 and not out
        assert "the options of 'odd' from acme-odd 1.0 have no JSON Schema" in err[0] and "--without odd" in err[0]


def test_empty_listings(terminal: Terminal) -> None:
    for plural in ("adapters", "tasks", "quantizers", "formats", "sources"):
        assert json.loads(terminal.run(plural, "--json")[1]) == []


def test_recipe_prints_what_run_would_run(terminal: Terminal, install: Install, tmp_path: Path) -> None:
    install("acme", HOOK + ADAPTER + SHOWN)
    terminal.allow("acme")
    path = tmp_path / "r.yaml"
    path.write_text("model: m\nadapter: ant\ndata: {train: a.jsonl}\ntrain: {epochs: 4}\n")
    flags = ["--data", "b.jsonl", "--eval-data", "e.jsonl", "-o", "adapter.r=3", "-o", "train.epochs=5", "--json"]
    code, out, err = terminal.run("recipe", str(path), *flags)
    document = json.loads(out)
    assert code == 0
    assert document["data"]["train"] == "b.jsonl" and document["data"]["eval"] == "e.jsonl"
    assert document["adapter"] == {"name": "ant", "r": 3} and document["train"] == {"epochs": 5.0}
    assert len(err) == 1 and err[0].startswith("note: the task is recognised from the data")
    assert "adapter:\n  name: ant\n  r: 8\n" in terminal.run("recipe", str(path))[1]
