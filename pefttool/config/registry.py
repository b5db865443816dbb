"""What the plugins registered: name -> (object, owner), for each kind. Clashes name both packages."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pefttool.api.adapter import Adapter
from pefttool.api.data import DataFormat, Source
from pefttool.api.errors import PluginError, UsageError, suggest
from pefttool.api.options import Options
from pefttool.api.quantizer import Quantizer
from pefttool.api.task import Task
from pefttool.config import plugins as plugin_loader
from pefttool.config.plugins import Plugin, Plugins, one_line

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]*")


@dataclass(frozen=True)
class Registered(Generic[T]):
    object: T
    plugin: Plugin


class Kind(Mapping[str, T]):
    """All objects of one kind by name. An unknown or clashing name is an error that says what there is."""

    def __init__(self, kind: str, entries: Mapping[str, Registered[T]], clashes: Mapping[str, str]) -> None:
        self._kind, self._entries, self._clashes = kind, dict(entries), dict(clashes)

    def __getitem__(self, name: str) -> T:
        if name in self._clashes:
            raise PluginError(self._clashes[name])
        if name not in self._entries:
            raise UsageError(f"unknown {self._kind} {name!r}: {suggest(name, self._entries)}")
        return self._entries[name].object

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Any:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def owner(self, name: str) -> Plugin:
        return self._entries[name].plugin

    @property
    def complaints(self) -> tuple[str, ...]:
        return tuple(self._clashes.values())


@dataclass(frozen=True)
class Registry:
    plugins: Plugins
    adapters: Kind[Adapter]
    tasks: Kind[Task]
    quantizers: Kind[Quantizer]
    formats: Kind[DataFormat]
    sources: Kind[Source]
    complaints: tuple[str, ...]
    #: What was found out of files, so that none is asked twice: see `data.rows.choose_format`.
    recognised: dict[tuple[Any, ...], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def kinds(self) -> dict[str, Kind[Any]]:
        return {
            "adapters": self.adapters,
            "tasks": self.tasks,
            "quantizers": self.quantizers,
            "formats": self.formats,
            "sources": self.sources,
        }


def build(without: Iterable[str] = (), only: Sequence[str] | None = None) -> Registry:
    """Load the plugins and collect what they register. Complaints are for the user; the rest works."""
    return collect(plugin_loader.load(without, only))


def collect(plugins: Plugins) -> Registry:
    complaints = list(plugins.complaints)
    kinds = {
        "adapters": Adapter,
        "tasks": Task,
        "quantizers": Quantizer,
        "formats": DataFormat,
        "sources": Source,
    }
    collected = {hook: _collect(plugins, hook, interface, complaints) for hook, interface in kinds.items()}
    for kind in collected.values():
        complaints.extend(kind.complaints)
    return Registry(plugins=plugins, complaints=tuple(complaints), **collected)


def _collect(plugins: Plugins, hook: str, interface: type[Any], complaints: list[str]) -> Kind[Any]:
    singular = hook.removesuffix("s")
    claims: dict[str, list[Registered[Any]]] = {}
    for plugin, implementation in plugins.implementations(f"register_{hook}"):
        who = f"plugin {plugin.name!r} from {plugin.owner}"
        way_out = f"update or uninstall {plugin.distribution}, or leave it out with --without {plugin.name}"
        try:
            judged = [(item, _unfit(item, interface)) for item in implementation.function()]
        except (Exception, SystemExit) as error:  # a stranger's code
            complaints.append(f"{who} failed in register_{hook}: {one_line(error)} ({way_out})")
            continue
        for item, reason in judged:
            if reason:
                complaints.append(f"{who} registered {_shown(item)} as {singular}: {reason} ({way_out})")
            else:
                claims.setdefault(item.name, []).append(Registered(item, plugin))
    entries = {name: claimed[0] for name, claimed in claims.items() if len(claimed) == 1}
    clashes = {name: _clash(singular, name, claimed) for name, claimed in sorted(claims.items()) if len(claimed) > 1}
    return Kind(singular, entries, clashes)


def _shown(item: Any) -> str:
    """What a plugin registered, without the addresses that Python shows of objects."""
    if isinstance(item, type):
        return f"the class {item.__name__}"
    if "__repr__" not in {name for kind in type(item).__mro__[:-1] for name in vars(kind)}:
        return f"an object of the class {type(item).__name__}"
    return reprlib.repr(item)


def _unfit(item: Any, interface: type[Any]) -> str | None:
    """Why `item` cannot be used, or None."""
    name = getattr(item, "name", None)
    if not isinstance(item, interface) or not isinstance(name, str) or not name:
        return f"expected an instance of pefttool.{interface.__name__} with a name"
    if not NAME.fullmatch(name):  # it becomes a part of the run folder's name
        return f"its name {name!r} has to be of letters, digits, '-', '_' and '.', and begin with one of the first two"
    options = getattr(item, "Options", Options)
    if not (isinstance(options, type) and issubclass(options, Options)):
        return "its Options are no subclass of pefttool.Options"
    if "name" in options.model_fields:
        return "its Options have a field 'name', which the recipe already uses for the name itself"
    return None


def _clash(singular: str, name: str, claimed: Sequence[Registered[Any]]) -> str:
    owners = {c.plugin.name: c.plugin.owner for c in claimed}
    if len(owners) == 1:
        ((plugin, owner),) = owners.items()
        times = f"{len(claimed)} times"
        return f"{singular} {name!r} is registered {times} by plugin {plugin!r} from {owner}: update or uninstall it"
    who = " and ".join(f"plugin {plugin!r} from {owner}" for plugin, owner in owners.items())
    ways = " or ".join(f"--without {plugin}" for plugin in owners)
    return f"{singular} {name!r} is registered by {who}: uninstall one of them, or leave one out with {ways}"
