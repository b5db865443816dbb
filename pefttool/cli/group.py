"""The command group: the core's verbs from a table, imported when used; further ones from plugins."""

from __future__ import annotations

from collections.abc import Container, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import click

from pefttool import __version__
from pefttool.api.errors import PluginError, suggest
from pefttool.cli.common import NO_THIRD_PARTY, plugin_options, session
from pefttool.config.plugins import Plugin, Plugins, one_line


class Verb(NamedTuple):
    """`target` is "module:command"; `help` is what the group's help shows without importing it."""

    target: str
    help: str


VERBS = {
    "run": Verb("pefttool.cli.run:run", "Fine-tune a pretrained model."),
    "resume": Verb("pefttool.cli.run:resume", "Go on with an interrupted run."),
    "plan": Verb("pefttool.cli.plan:plan", "What a run would take, and whether it fits, before it starts."),
    "data": Verb("pefttool.cli.data:data", "Look at data before training on it."),
    "recipe": Verb("pefttool.cli.recipe:recipe", "Print the resolved recipe, without running it."),
    "eval": Verb("pefttool.cli.use:evaluate", "Held-out metrics of a finished run."),
    "predict": Verb("pefttool.cli.use:predict", "Answers as JSON lines on standard output."),
    "chat": Verb("pefttool.cli.use:chat", "Talk to a chat model."),
    "merge": Verb("pefttool.cli.merge:merge", "Fold an adapter into its base's weights, and compare."),
    "check": Verb("pefttool.cli.check:check", "Load an adapter in a clean process with plain peft, and compare."),
    "adapters": Verb("pefttool.cli.kinds:adapters", "List the adapters."),
    "tasks": Verb("pefttool.cli.kinds:tasks", "List the tasks."),
    "quantizers": Verb("pefttool.cli.kinds:quantizers", "List the quantizers."),
    "formats": Verb("pefttool.cli.kinds:formats", "List the data formats."),
    "sources": Verb("pefttool.cli.kinds:sources", "List the sources of models and data."),
    "plugins": Verb("pefttool.cli.plugins:plugins", "List the plugins, who ships them, and what each registers."),
}


class VerbGroup(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Wherever the flag stands: a stranger's code must not be imported to look up a verb or a help.
        if NO_THIRD_PARTY in args:
            session(ctx).third_party = False
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS, *sorted(plugin_commands(ctx, VERBS))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return plugin_commands(ctx, VERBS).get(cmd_name)
        module, name = VERBS[cmd_name].target.split(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        if not any(parameter.name == "without" for parameter in command.params):
            plugin_options(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(f"unknown command {args[0]!r}: {suggest(args[0], self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, verb.help) for name, verb in VERBS.items()]
        width = formatter.width - 6 - max(len(name) for name in VERBS)
        for name, command in sorted(plugin_commands(ctx, VERBS).items()):
            if not command.hidden:
                rows.append((name, command.get_short_help_str(width)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        super().invoke(ctx)  # what a command returns is no exit status: only ctx.exit(n) is


@click.group(
    "pefttool", cls=VerbGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@plugin_options
@click.version_option(__version__, prog_name="pefttool", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Fine-tune a pretrained transformer on one small machine; adapters are pip packages.

    \b
    pefttool run --adapter lora                              the built-in example
    pefttool run --adapter lora --model M --data FILE        your own model and data
    pefttool COMMAND --help                                  everything about one command

    Environment: PEFTTOOL_PLUGINS=a,b lists the only plugins that may be loaded; PEFTTOOL_NO_THIRD_PARTY=1 is
    --no-third-party; PEFTTOOL_TRACEBACK=1 shows the traceback of an error.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def plugin_commands(ctx: click.Context, taken: Container[str]) -> Mapping[str, click.Command]:
    """The commands that plugins add. A user who asks for help must get it: problems are warnings here."""
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
