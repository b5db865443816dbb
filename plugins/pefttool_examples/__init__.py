"""Real models and data to try pefttool with: the source `example`, made from packages of the Python package index."""

from collections.abc import Sequence

import click

from pefttool import Source, hookimpl

pefttool_api_version = 1


@hookimpl
def register_sources() -> Sequence[Source]:
    from pefttool_examples.source import ExampleSource

    return [ExampleSource()]


@hookimpl
def register_commands(cli: click.Group) -> None:
    from pefttool_examples.commands import examples

    cli.add_command(examples)
