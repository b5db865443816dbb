"""`pefttool resume`: go on with a run that was interrupted."""

from __future__ import annotations

from pathlib import Path

import click

from pefttool.cli.common import current_registry
from pefttool.cli.run import fine_tune


@click.command("resume")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--allow-changed",
    is_flag=True,
    help="Go on although data, recipe, versions or machine are not what they were: the end will not be the same.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def resume(run: Path, allow_changed: bool, as_json: bool) -> None:
    """Go on with an interrupted run from its newest checkpoint, to the very end that it would have had."""
    registry = current_registry()
    from pefttool import resuming

    found, recipe = resuming.find(run, registry, allow_changed)
    fine_tune(recipe, registry, bool(found.identity.get("skip_bad_rows")), as_json, found)
