"""What the plugins registered: name -> (object, owner), for each kind. Clashes name both packages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pefttool import plugins as plugin_loader
from pefttool.errors import PluginError, UsageError, suggest
from pefttool.interfaces import Adapter, DataFormat, Quantizer, Source, Task
from pefttool.plugins import Plugin, Plugins

T = TypeVar("T")


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
    entries: dict[str, Registered[Any]] = {}
    clashes: dict[str, str] = {}
    for plugin, implementation in plugins.implementations(f"register_{hook}"):
        way_out = f"leave it out with --without {plugin.name}"
        try:
            objects = list(implementation.function())
        except Exception as error:  # a stranger's code
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            complaints.append(f"plugin {plugin.name!r} from {plugin.owner} failed in register_{hook}: {reason} ({way_out})")
            continue
        for item in objects:
            name = getattr(item, "name", None)
            if not isinstance(item, interface) or not isinstance(name, str) or not name:
                complaints.append(
                    f"plugin {plugin.name!r} from {plugin.owner} registered {item!r} as {singular}: expected an instance"
                    f" of pefttool.{interface.__name__} with a name ({way_out})"
                )
            elif name in clashes or name in entries:
                other = entries.pop(name).plugin.owner if name in entries else "another plugin"
                clashes[name] = (
                    f"{singular} {name!r} is registered by plugins from {other} and {plugin.owner}:"
                    f" uninstall one of them, or leave one out with --without {plugin.name}"
                )
            else:
                entries[name] = Registered(item, plugin)
    return Kind(singular, entries, clashes)
