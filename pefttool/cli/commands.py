"""Commands that plugins add to the group, each plugin isolated from the core's commands and from the others."""

from __future__ import annotations

from collections.abc import Container, Mapping

import click

from pefttool.api.errors import PluginError
from pefttool.cli.common import session
from pefttool.config.plugins import Plugin, Plugins, one_line


def plugin_commands(ctx: click.Context, taken: Container[str]) -> Mapping[str, click.Command]:
    """The commands that plugins add. Whoever asks for help must get it: problems are warnings here."""
    current = session(ctx)
    if current.commands is None:
        current.commands = {}
        try:
            plugins = current.plugins()
        except PluginError as error:
            current.warn(str(error).splitlines())
            return current.commands
        commands, complaints = collect_commands(plugins, taken)
        current.commands = {name: command for name, (command, _) in commands.items()}
        current.warn([*plugins.complaints, *complaints])
    return current.commands


def collect_commands(
    plugins: Plugins, taken: Container[str]
) -> tuple[dict[str, tuple[click.Command, Plugin]], list[str]]:
    """What `register_commands` adds, by name, and a complaint for each plugin that fails or takes a taken name.

    Each plugin gets a group of its own to fill, so that none sees, replaces or half-changes another's commands.
    """
    claims: dict[str, list[tuple[click.Command, Plugin]]] = {}
    complaints: list[str] = []
    for plugin, implementation in plugins.implementations("register_commands"):
        group = click.Group("pefttool")
        who = f"plugin {plugin.name!r} from {plugin.owner}"
        way_out = f"update or uninstall {plugin.distribution}, or leave it out with --without {plugin.name}"
        try:
            implementation.function(**{name: group for name in implementation.argnames})
        except (Exception, SystemExit) as error:  # a stranger's code
            complaints.append(f"{who} failed in register_commands: {one_line(error)} ({way_out})")
            continue
        for name, command in group.commands.items():
            if name in taken:
                complaints.append(f"{who} registered the command {name!r}, which pefttool has itself ({way_out})")
            else:
                claims.setdefault(name, []).append((command, plugin))
    commands = {}
    for name, claimed in sorted(claims.items()):
        if len(claimed) == 1:
            commands[name] = claimed[0]
        else:
            owners = " and ".join(f"plugin {p.name!r} from {p.owner}" for _, p in claimed)
            ways = " or ".join(f"--without {p.name}" for _, p in claimed)
            complaints.append(f"command {name!r} is registered by {owners}: leave one out with {ways}")
    return commands, complaints
