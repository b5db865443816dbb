"""Find and load plugins: entry points of the group `pefttool`, one by one in name order, each isolated.

Why not `load_setuptools_entrypoints`: it loads in file-system order, lets a second plugin of the same name vanish
without a word, and one failing import ends the command.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions
from types import ModuleType
from typing import Any

import pluggy

from pefttool.api import hookspecs
from pefttool.api.errors import PluginError, suggest
from pefttool.api.hookspecs import API_VERSION, PROJECT

ALLOW_LIST = "PEFTTOOL_PLUGINS"
#: Any value but an empty one or 0 leaves out every plugin that pefttool does not ship itself.
NO_THIRD_PARTY = "PEFTTOOL_NO_THIRD_PARTY"
#: The distribution whose plugins are the first party's.
OWN = "pefttool"


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin and who ships it. `owner` is how messages name it."""

    name: str
    distribution: str
    version: str
    module: ModuleType

    @property
    def owner(self) -> str:
        return f"{self.distribution} {self.version}"

    @property
    def api_version(self) -> int:
        return int(self.module.pefttool_api_version)


@dataclass(frozen=True)
class Plugins:
    """The plugins that loaded, in name order, and one line for each that did not.

    `left_out` were never imported: others than pefttool ship them, and `--no-third-party` asked for none of those.
    """

    manager: pluggy.PluginManager
    loaded: tuple[Plugin, ...]
    complaints: tuple[str, ...]
    left_out: tuple[EntryPointFound, ...] = ()

    def implementations(self, hook: str) -> list[tuple[Plugin, Any]]:
        """(plugin, function) for a hook, in name order: the core calls them itself, so that it knows the owner."""
        caller = getattr(self.manager.hook, hook)
        functions = {impl.plugin_name: impl for impl in caller.get_hookimpls()}
        return [(p, functions[p.name]) for p in self.loaded if p.name in functions]


@dataclass(frozen=True)
class EntryPointFound:
    """An entry point and who ships it."""

    entry_point: EntryPoint
    distribution: str
    version: str

    @property
    def third_party(self) -> bool:
        return _normal(self.distribution) != OWN


def find(complaints: list[str] | None = None) -> dict[str, list[EntryPointFound]]:
    """Entry points by name. A distribution that is seen twice (an editable's egg-info) counts once.

    One whose metadata cannot be read is left out; a line about it is added to `complaints`.
    """
    found: dict[str, dict[str, EntryPointFound]] = {}
    for distribution in distributions():
        try:
            points = [point for point in distribution.entry_points if point.group == PROJECT]
            if not points:
                continue
            # Both are None where there is no METADATA file, whatever their annotations say.
            name, version = distribution.metadata["Name"] or "unknown", distribution.version or "?"
        except Exception as error:  # broken files; importlib.metadata raises TypeError, UnicodeError, ...
            if complaints is not None:
                folder = getattr(distribution, "_path", "a package")
                reason = one_line(error)
                complaints.append(f"the entry points of {folder} cannot be read: {reason} (reinstall that package)")
            continue
        for point in points:
            found.setdefault(point.name, {}).setdefault(_normal(name), EntryPointFound(point, name, version))
    return {name: [by[d] for d in sorted(by)] for name, by in sorted(found.items())}


def _normal(distribution: str) -> str:
    """`My_Plugin` and `my-plugin` are one distribution to every installer."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def load(
    without: Iterable[str] = (),
    only: Sequence[str] | None = None,
    found: dict[str, list[EntryPointFound]] | None = None,
    third_party: bool | None = None,
) -> Plugins:
    """Load every plugin that may be loaded.

    `only` is an allow-list (None: the environment's PEFTTOOL_PLUGINS, and without that all). With `third_party=False`
    (None: unless the environment's PEFTTOOL_NO_THIRD_PARTY is set) those of others are left out, whatever else names
    them. Names that no installed plugin has raise PluginError. A plugin that fails to load becomes a complaint, the
    others go on.
    """
    complaints: list[str] = []
    found = find(complaints) if found is None else found
    blocked = set(without)
    allowed = _allowed(only)
    unknown = _unknown("--without", blocked, found) + _unknown(ALLOW_LIST, allowed or set(), found)
    if unknown:
        raise PluginError("\n".join(unknown))
    if third_party is None:
        third_party = os.environ.get(NO_THIRD_PARTY, "") in ("", "0")
    left_out = () if third_party else tuple(c for candidates in found.values() for c in candidates if c.third_party)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    loaded: list[Plugin] = []
    for name, candidates in found.items():
        if name in blocked or (allowed is not None and name not in allowed):
            continue
        candidates = [candidate for candidate in candidates if candidate not in left_out]
        if not candidates:
            continue
        try:
            loaded.append(_load_one(manager, name, candidates))
        except PluginError as error:
            complaints.append(str(error))
    return Plugins(manager, tuple(loaded), tuple(complaints), left_out)


def _unknown(origin: str, names: set[str], found: Iterable[str]) -> list[str]:
    return [f"{origin}: plugin {n!r} is not installed: {suggest(n, found)}" for n in sorted(names - set(found))]


def _allowed(only: Sequence[str] | None) -> set[str] | None:
    if only is not None:
        return set(only)
    listed = os.environ.get(ALLOW_LIST)
    return None if listed is None else {n.strip() for n in listed.split(",") if n.strip()}


def _load_one(manager: pluggy.PluginManager, name: str, candidates: list[EntryPointFound]) -> Plugin:
    if len(candidates) > 1:
        owners = ", ".join(f"{c.distribution} {c.version}" for c in candidates)
        raise PluginError(f"plugin name {name!r} is claimed by {owners}: uninstall all but one of them")
    found = candidates[0]
    owner = f"plugin {name!r} from {found.distribution} {found.version}"
    way_out = f"update or uninstall {found.distribution}, or leave it out with --without {name}"
    try:
        module = found.entry_point.load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises on import must not end the command
        raise PluginError(f"{owner} failed to load: {one_line(error)} ({way_out})") from error
    version = getattr(module, "pefttool_api_version", None)
    if version != API_VERSION:
        given = "states no API version" if version is None else f"is written for API version {version!r}"
        if isinstance(version, int) and version > API_VERSION:
            way_out = f"update pefttool, uninstall {found.distribution}, or leave it out with --without {name}"
        raise PluginError(f"{owner} {given}, this pefttool has `pefttool_api_version = {API_VERSION}` ({way_out})")
    try:
        manager.register(module, name)
        _check_hooks(manager, name, module)
    except (pluggy.PluginValidationError, ValueError) as error:
        if manager.has_plugin(name):
            manager.unregister(name=name)
        raise PluginError(f"{owner} does not fit the hooks: {one_line(error)} ({way_out})") from error
    return Plugin(name, found.distribution, found.version, module)


def _check_hooks(manager: pluggy.PluginManager, name: str, module: ModuleType) -> None:
    """A misspelt or unmarked hook would be ignored silently; a wrapper would be bypassed."""
    known = {n for n in vars(manager.hook) if not n.startswith("_")}
    specified = {n for n in known if getattr(manager.hook, n).has_spec()}
    plugin = manager.get_plugin(name)
    for caller in manager.get_hookcallers(plugin) or []:
        if caller.name not in specified:
            raise ValueError(f"unknown hook {caller.name!r}: {suggest(caller.name, specified)}")
        for impl in caller.get_hookimpls():
            if impl.plugin_name == name and (impl.hookwrapper or impl.wrapper):
                raise ValueError(f"hook {caller.name!r} is a wrapper, which pefttool does not support")
    for hook in sorted(specified):
        if callable(getattr(module, hook, None)) and manager.parse_hookimpl_opts(module, hook) is None:
            raise ValueError(f"function {hook!r} is not marked: put @pefttool.hookimpl above it")


def one_line(error: BaseException) -> str:
    """`ValueError: what it said`, whatever line breaks it said it with."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
