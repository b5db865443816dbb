"""`pefttool examples`: what there is to try pefttool with, and the packages it is made from."""

from __future__ import annotations

import re
from pathlib import Path

import click

from pefttool import DataError, UsageError
from pefttool.cli.for_plugins import print_table

REFERENCE = re.compile(r"\bexample:([A-Za-z0-9_.\-]+)")


@click.group("examples")
def examples() -> None:
    """Real models and data to try pefttool with, made from small public packages."""


@examples.command("list")
def listed() -> None:
    """The example models and data, and their licences."""
    from pefttool_examples.source import DATA, MODELS

    rows = [
        (f"example:{name}", kind, example.about)
        for kind, known in (("model", MODELS), ("data", DATA))
        for name, example in sorted(known.items())
    ]
    print_table(("NAME", "KIND", "WHAT IT IS"), rows)


@examples.command("fetch")
@click.argument("what", nargs=-1, metavar="[NAME | RECIPE.yaml]...")
@click.option("--all", "everything", is_flag=True, help="All examples.")
def fetch(what: tuple[str, ...], everything: bool) -> None:
    """Download the packages that these examples are made from (pip, and apt-get for Debian packages).

    A recipe stands for every `example:NAME` in it.
    """
    from pefttool_examples import source

    if not what and not everything:
        raise UsageError("examples fetch: give names, recipes or --all; pefttool examples list shows the names")
    names = [name for given in what for name in _names(given)]
    if everything:
        names = sorted({**source.MODELS, **source.DATA})
    failed = []
    for name in dict.fromkeys(names):
        click.echo(f"example:{name}", err=True)
        try:
            source.fetch(name)
        except DataError as error:
            failed.append(f"example:{name}: {error}")
    if failed:
        raise DataError("\n".join(failed))


def _names(given: str) -> list[str]:
    path = Path(given)
    if path.suffix not in (".yaml", ".yml"):
        return [given.removeprefix("example:")]
    try:
        return REFERENCE.findall(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"recipe {given} cannot be read: {error.strerror or error}") from error
