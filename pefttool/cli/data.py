"""`pefttool data check`: is this data what the task expects, before anything is trained?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from pefttool.api.values import Caution, told
from pefttool.cli.common import current_registry
from pefttool.cli.kinds import JSON
from pefttool.cli.output import print_json

if TYPE_CHECKING:
    from pefttool.data.survey import Survey

SHOWN, CLASSES = 20, 20


@click.group("data")
def data() -> None:
    """Look at data before training on it."""


@data.command("check")
@click.argument("path", metavar="FILE")
@click.option("--task", metavar="NAME", help="What a row means: see `pefttool tasks`; default: recognised.")
@click.option("--eval-data", metavar="FILE", help="Held-out rows; default: a part of FILE.")
@click.option(
    "--format", "data_format", metavar="NAME", help="Data format: see `pefttool formats`; default: recognised."
)
@click.option("--all", "everything", is_flag=True, help=f"Show every row that cannot be used, not the first {SHOWN}.")
@click.option("-o", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Keys such as -o task.text_column=body.")
@JSON
@click.pass_context
def check(
    ctx: click.Context,
    path: str,
    task: str | None,
    eval_data: str | None,
    data_format: str | None,
    everything: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Read all of FILE (or folder, or SOURCE:REFERENCE), and say what it is taken for and which rows are wrong.

    Nothing is trained, and no model is needed. The exit status is 1 if a run would not take the data as it is.
    """
    from pefttool.config import recipe
    from pefttool.data.survey import survey

    registry = current_registry()
    flags = {"data.train": path, "data.eval": eval_data, "data.format": data_format, "task.name": task}
    # What data does not depend on, and a recipe must have.
    document = {"model": "none", "adapter": {"name": next(iter(registry.adapters), None)}}
    found = survey(recipe.resolve(recipe.combine(document, flags, overrides), registry), registry)
    if as_json:
        print_json(found.as_json())
    else:
        _show(path, found, None if everything else SHOWN)
    ctx.exit(0 if found.good else 1)


def _show(path: str, found: Survey, most: int | None) -> None:
    from pefttool.data.corpus import no_way_on, same_complaint

    click.echo(f"{path}: {found.reason}")
    for notice in found.notices:
        click.echo(f"· {told(notice)}")
    click.echo(f"· columns: {', '.join(found.columns)}")
    parts = f": {found.train} to train on, {found.eval} held out" if found.train else ""
    click.echo(f"· {found.read} rows{parts}")
    if found.classes:
        shown = [f"{name} {count}" for name, count in list(found.classes.items())[:CLASSES]]
        more = f", and {len(found.classes) - CLASSES} more" if len(found.classes) > CLASSES else ""
        click.echo(f"· {len(found.classes)} classes in the training rows: {', '.join(shown)}{more}")
    click.echo(f"· the first row: {_short(found.first)}")
    shared = same_complaint(found.problems, found.read)
    if most is not None and shared is not None:
        click.echo(shared)
        most = len(found.problems)
    else:
        for problem in found.problems[:most]:
            click.echo(str(problem))
    if most is not None and len(found.problems) > most:
        click.echo(f"and {len(found.problems) - most} more: --all shows them")
    if shared is not None or found.hint is not None:
        click.echo(no_way_on(found.hint))
    elif found.problems:
        others = ", or leave them out with --skip-bad-rows" if found.read else ""
        click.echo(f"{len(found.problems)} rows cannot be used: mend them{others}")
    if found.fault is not None and found.read:
        click.echo(found.fault)
    doubtful = sum(isinstance(notice, Caution) for notice in found.notices)
    if found.good and doubtful:
        click.echo(f"a run would take it; {doubtful} warning{'s' * (doubtful > 1)} above")
    elif found.good:
        click.echo("nothing is wrong with it")


def _short(values: dict[str, Any], limit: int = 300) -> str:
    text = json.dumps(values, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"
