"""A registry made by hand: two adapters, two tasks, one quantizer; no plugin is loaded."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal

import pluggy
from pydantic import Field

from pefttool import Adapter, Options, Quantizer, Task
from pefttool.config.plugins import Plugin, Plugins
from pefttool.config.registry import Kind, Registered, Registry

PLUGIN = Plugin("fake", "acme-fake", "1.0", ModuleType("fake"))


class AlphaOptions(Options):
    r: int = Field(8, ge=1, description="rank")
    targets: list[str] | Literal["all"] = Field("all", description="modules by name")
    mode: Literal["slow", "fast"] = Field("slow", description="how")
    scale: float | None = Field(None, gt=0, description="of the update")
    note: str = Field("", description="any text")


class BetaOptions(Options):
    tokens: int = Field(description="virtual tokens, without a default")


class TextOptions(Options):
    column: str = Field("text", description="column with the text")


class GroupOptions(Options):
    nested: bool = Field(True, description="scales are quantised, too")
    group: int = Field(64, ge=1, description="weights that share a scale")
    note: str | None = Field(None, description="any text")


def make(base: type[Any], **attributes: Any) -> Any:
    """An instance of the abstract `base` without any behaviour but `attributes`."""
    empty = dict.fromkeys(base.__abstractmethods__, lambda self, *args, **kwargs: None)
    return type("Fake", (base,), {**empty, **attributes})()


def make_registry() -> Registry:
    alpha = make(
        Adapter, name="alpha", Options=AlphaOptions, defaults=lambda self, task: {"learning_rate": 5e-3, "epochs": 7}
    )
    beta = make(Adapter, name="beta", Options=BetaOptions)
    plain = make(Task, name="plain", Options=TextOptions, defaults=lambda self: {"batch_size": 3, "epochs": 2})
    example = {
        "model": "source:model",
        "quantize": "q4",
        "data": {"train": "source:rows"},
        "train": {"epochs": 1},
    }
    chat = make(Task, name="chat", Options=TextOptions, example=example)
    kinds = {
        "adapter": [alpha, beta],
        "task": [plain, chat],
        "quantizer": [make(Quantizer, name="q4", Options=GroupOptions)],
        "format": [],
        "source": [],
    }
    made = {
        f"{kind}s": Kind[Any](kind, {o.name: Registered(o, PLUGIN) for o in objects}, {})
        for kind, objects in kinds.items()
    }
    return Registry(Plugins(pluggy.PluginManager("pefttool"), (PLUGIN,), ()), complaints=(), **made)
