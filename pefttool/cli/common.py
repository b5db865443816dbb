"""What the verbs share: the registry of this command line, and the recipe's flags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pefttool.api.errors import UsageError
from pefttool.cli.output import plain_line
from pefttool.config import plugins as plugin_loader

if TYPE_CHECKING:
    from pefttool.config.plugins import Plugins
    from pefttool.config.recipe import Recipe
    from pefttool.config.registry import Registry

Command = TypeVar("Command", bound=Callable[..., Any])


NO_THIRD_PARTY = "--no-third-party"


@dataclass
class Invocation:
    """One command line: the plugins it leaves out, what was loaded so far, which warnings were printed."""

    without: list[str] = field(default_factory=list)
    third_party: bool | None = None
    registry: Registry | None = None
    commands: dict[str, click.Command] | None = None
    _plugins: Plugins | None = None
    _warned: set[str] = field(default_factory=set)

    def plugins(self) -> Plugins:
        if self._plugins is None:
            self._plugins = plugin_loader.load(self.without, third_party=self.third_party)
        return self._plugins

    def warn(self, lines: Iterable[str]) -> None:
        """One line each on standard error, the same line only once."""
        for line in lines:
            if line not in self._warned:
                self._warned.add(line)
                click.echo(f"warning: {plain_line(line)}", err=True)


def session(ctx: click.Context | None = None) -> Invocation:
    return (ctx or click.get_current_context()).find_root().ensure_object(Invocation)


def _add_without(ctx: click.Context, _: click.Parameter, names: tuple[str, ...]) -> None:
    session(ctx).without.extend(names)


def plugin_options(command: Command) -> Command:
    """`--without NAME` and `--no-third-party`, which every verb takes, before or after its name."""
    without = click.option(
        "--without",
        multiple=True,
        metavar="PLUGIN",
        expose_value=False,
        callback=_add_without,
        help="Leave this plugin out (repeatable).",
    )
    third_party = click.option(
        NO_THIRD_PARTY,
        is_flag=True,
        expose_value=False,  # the group has seen it before anything else
        help="Leave out every plugin that pefttool does not ship itself: none of their code is imported.",
    )
    return without(third_party(command))


def current_registry() -> Registry:
    """What the plugins of this command line register; outside of one, what all plugins do.

    Complaints go to standard error, once.
    """
    if click.get_current_context(silent=True) is None:
        from pefttool.config import registry

        return registry.build()
    current = session()
    if current.registry is None:
        from pefttool.config import registry

        current.registry = registry.collect(current.plugins())
        current.warn(current.registry.complaints)
    return current.registry


RECIPE_FLAGS = {
    "adapter": "adapter.name",
    "model": "model",
    "trust_remote_code": "trust_remote_code",
    "task": "task.name",
    "data": "data.train",
    "eval_data": "data.eval",
    "quantize": "quantize.name",
    "out": "out",
    "budget": "memory.budget",
}
#: Keys that everybody changes, as flags of their own: the type, and what the help says.
SHORTHANDS: dict[str, tuple[type, str]] = {
    "epochs": (float, "Times that all rows are trained on."),
    "batch_size": (int, "Rows of a batch."),
    "learning_rate": (float, "Of the adapter's parameters."),
    "max_steps": (int, "Optimiser steps, instead of epochs."),
    "sequence_length": (int, "Tokens that a row may have."),
}


def recipe_options(command: Command) -> Command:
    """RECIPE and the flags that override it: `read_recipe` takes them."""
    decorators = [
        click.argument("recipe", required=False, type=click.Path(path_type=Path), metavar="[RECIPE.yaml]"),
        click.option("--adapter", metavar="NAME", help="How the model is made trainable: see `pefttool adapters`."),
        click.option("--model", metavar="MODEL", help="Folder, ORG/NAME[@REVISION] on the hub, or SOURCE:REFERENCE."),
        click.option(
            "--trust-remote-code",
            metavar="REPO@REVISION",
            help="Run the Python code that comes with this model, which you have read at this revision.",
        ),
        click.option("--task", metavar="NAME", help="What a row means: see `pefttool tasks`; default: recognised."),
        click.option("--data", metavar="PATH", help="File or folder with the training rows, or SOURCE:REFERENCE."),
        click.option("--eval-data", metavar="FILE", help="Held-out rows; default: a part of the training rows."),
        click.option("--quantize", metavar="NAME", help="Store the frozen weights in fewer bits."),
        click.option("--budget", metavar="SIZE", help="Keep the run within this much memory, such as 6GiB."),
        click.option("--out", metavar="DIR", help="The run folder; default: runs/ADAPTER-TASK-NUMBER."),
        *(
            click.option(f"--{name.replace('_', '-')}", type=kind, help=f"{said} The same as -o train.{name}=VALUE.")
            for name, (kind, said) in SHORTHANDS.items()
        ),
        click.option(
            "-o",
            "overrides",
            multiple=True,
            metavar="KEY.PATH=VALUE",
            help="Any key of the recipe, such as -o adapter.r=32 (repeatable).",
        ),
    ]
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def read_recipe(
    registry: Registry,
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
    data_optional: bool = False,
    **flags: Any,
) -> Recipe:
    """The recipe file, the flags over it, `-o` over both; validated. Raises Refused with every mistake.

    Raises UsageError where a flag of SHORTHANDS and `-o` give the same key.
    """
    from pefttool.config import recipe as recipes
    from pefttool.config import recipe_file
    from pefttool.runs import run_paths

    document = {} if recipe is None else run_paths.followed(recipe_file.read(recipe), recipe)
    for name in SHORTHANDS:
        twice = [override for override in overrides if override.partition("=")[0].strip() == f"train.{name}"]
        if twice and flags.get(name) is not None:
            flag = f"--{name.replace('_', '-')} {flags[name]}"
            raise UsageError(f"train.{name}: given by {flag} and by -o {twice[0]}: give one of them")
    given = {RECIPE_FLAGS.get(name, f"train.{name}"): value for name, value in flags.items()}
    return recipes.resolve(recipes.combine(document, given, overrides), registry, data_optional=data_optional)
