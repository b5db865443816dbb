"""`pefttool plugins`: who ships what."""

from __future__ import annotations

from typing import Any

import click

from pefttool.cli.common import current_registry, session
from pefttool.cli.group import collect_commands
from pefttool.cli.output import print_json, print_table
from pefttool.config.plugins import Plugin
from pefttool.config.registry import Registry

LEFT_OUT = "nothing: left out by --no-third-party, and not imported"


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the complaints that are warnings otherwise.")
def plugins(as_json: bool) -> None:
    """List the plugins, who ships them, and what each registers."""
    from pefttool.cli.group import VERBS

    registry = current_registry()
    commands, complaints = collect_commands(registry.plugins, VERBS)
    session().warn(complaints)
    entries = []
    for plugin in registry.plugins.loaded:
        own = [name for name, (_, owner) in commands.items() if owner == plugin]
        entries.append(
            {**_entry(plugin), "registers": _registered(registry, plugin) | ({"commands": own} if own else {})}
        )
    left_out = [
        {"name": found.entry_point.name, "distribution": found.distribution, "version": found.version}
        for found in registry.plugins.left_out
    ]
    if as_json:
        shown = {"plugins": entries, "left_out": left_out, "complaints": [*registry.complaints, *complaints]}
        print_json(shown)
        return
    rows = [(e["name"], e["distribution"], e["version"], str(e["api_version"]), _text(e["registers"])) for e in entries]
    rows += [(e["name"], e["distribution"], e["version"], "", LEFT_OUT) for e in left_out]
    print_table(("NAME", "DISTRIBUTION", "VERSION", "API", "REGISTERS"), rows)


def _entry(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "api_version": plugin.api_version,
    }


def _registered(registry: Registry, plugin: Plugin) -> dict[str, list[str]]:
    registered = {
        plural: [name for name in kind if kind.owner(name) == plugin] for plural, kind in registry.kinds.items()
    }
    if any(p == plugin for p, _ in registry.plugins.implementations("on_event")):
        registered["observers"] = [plugin.name]
    return {plural: names for plural, names in registered.items() if names}


def _text(registered: dict[str, list[str]]) -> str:
    return "; ".join(f"{plural}: {', '.join(names)}" for plural, names in registered.items())
