"""`pefttool recipe`: what `pefttool run` would run."""

from __future__ import annotations

from typing import Any

import click

from pefttool.cli.common import current_registry, read_recipe, recipe_options
from pefttool.cli.output import print_json


@click.command("recipe")
@recipe_options
@click.option("--schema", "as_schema", is_flag=True, help="Print the JSON Schema of recipes instead, for editors.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of YAML.")
def recipe(as_schema: bool, as_json: bool, **flags: Any) -> None:
    """Print the resolved recipe, without running it. It takes the flags of `pefttool run`."""
    registry = current_registry()
    if as_schema:
        from pefttool.config import schema

        print_json(schema.of_recipe(registry))
        return
    resolved = read_recipe(registry, **flags)
    if as_json:
        print_json(resolved.as_document())
    else:
        click.echo(resolved.as_yaml(), nl=False)
    if resolved.task is None:
        click.echo("note: the task is recognised from the data when the run starts; --task NAME settles it", err=True)
