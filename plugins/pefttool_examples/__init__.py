"""Real models and data to try pefttool with: the source `example`, and `pefttool examples`, which fetches them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pefttool import Source, hookimpl

if TYPE_CHECKING:
    import click

pefttool_api_version = 2


@hookimpl
def register_sources() -> Sequence[Source]:
    from pefttool_examples.source import ExampleSource

    return [ExampleSource()]


@hookimpl
def register_commands(cli: click.Group) -> None:
    from pefttool_examples.commands import examples

    cli.add_command(examples)
