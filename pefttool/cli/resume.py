"""`pefttool resume`: go on with a run that was interrupted."""

from __future__ import annotations

from pathlib import Path

import click

from pefttool.cli.common import current_registry
from pefttool.cli.run import check, fine_tune
from pefttool.files import strict_json


@click.command("resume")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--allow-changed",
    is_flag=True,
    help="Go on although data, recipe, versions or machine are not what they were: the end will not be the same.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def resume(run: Path, allow_changed: bool, as_json: bool) -> None:
    """Go on with an interrupted run from its newest checkpoint, to the very end that it would have had.

    What could not be done after training (answers, metrics, the check) is done without training again.
    """
    registry = current_registry()
    from pefttool.runs import resuming

    unchecked = resuming.unchecked(run, registry)
    if unchecked is not None:
        checked = check(run, registry, unchecked)
        if as_json:
            click.echo(strict_json.dumps({"check": checked if isinstance(checked, str) else checked.as_json()}))
        else:
            click.echo(f"{run} is finished; checked: {checked if isinstance(checked, str) else checked.line()}")
        return
    found, recipe = resuming.find(run, registry, allow_changed)
    fine_tune(recipe, registry, bool(found.identity.get("skip_bad_rows")), as_json, found)
