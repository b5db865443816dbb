"""`pefttool check`: whether a saved adapter is whole, does something, and works without pefttool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pefttool.cli.common import current_registry
from pefttool.cli.output import print_json
from pefttool.cli.use import DEVICE, DTYPE, FORMAT, TRUST


@click.command("check")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--data", default=None, help="Rows with answers to ask; default: the run's own held-out rows.")
@FORMAT
@click.option("--rows", type=click.IntRange(min=1), default=16, show_default=True, help="Rows to ask, at most.")
@DEVICE
@DTYPE
@TRUST
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def check(adapter: Path, as_json: bool, rows: int, **opening: Any) -> None:
    """Load an adapter in a clean process with plain peft, and compare.

    ADAPTER is a run's folder, or its adapter folder. Whatever is wrong is said in one line, and the exit status is 1.
    """
    registry = current_registry()
    from pefttool.export import check as checking
    from pefttool.export import peft_versions
    from pefttool.export.reload import Opening
    from pefttool.setup import allocator

    allocator.give_back_freed_memory()  # one model comes after another
    found = checking.check(adapter, registry, Opening(**opening), rows)
    if as_json:
        print_json(found.as_json())
        return
    head = f", with the head {', '.join(found.heads)}" if found.heads else ""
    click.echo(f"adapter: {found.folder} ({found.adapter}): {found.tensors} tensors, all in their places{head}")
    click.echo(
        f"effect: changes the outputs by up to {found.effect.largest:.2g}"
        f" ({found.effect.relative:.1%} of the largest) on {found.effect.rows} rows"
    )
    if isinstance(found.clean, str):
        click.echo(f"without pefttool: {found.clean}")
    else:
        libraries = " and ".join(f"{name} {version}" for name, version in sorted(found.versions.items()))
        click.echo(f"without pefttool ({libraries}): {found.clean}")
    if found.since is not None:
        click.echo(f"format: peft {found.since} and later take it; tested with {peft_versions.tested()}")
