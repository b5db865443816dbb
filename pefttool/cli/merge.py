"""`pefttool merge`: fold an adapter into its base's weights, and compare before the result appears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pefttool.cli.common import current_registry
from pefttool.cli.output import print_json
from pefttool.cli.use import DEVICE, DTYPE, FORMAT, RUN, TRUST


@click.command("merge")
@RUN
@click.option("--out", type=click.Path(path_type=Path), default=None, help="The new folder; default: RUN/merged.")
@click.option(
    "--into",
    type=click.Choice(["trained-on", "original"]),
    default="trained-on",
    show_default=True,
    help="The base's weights as the adapter saw them (quantised and dequantised), or as they were before.",
)
@click.option(
    "--save-as",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default=None,
    help="Default: what the base is stored in; 16 bits where it was quantised.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=None,
    help="Difference allowed, as a share of the outputs' size; default: by the dtypes.",
)
@click.option("--data", default=None, help="Rows with answers to compare on; default: the run's own held-out rows.")
@FORMAT
@DEVICE
@DTYPE
@TRUST
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def merge(run: Path, as_json: bool, out: Path | None, **options: Any) -> None:
    """Fold an adapter into its base's weights, and compare.

    The two answer the same held-out rows; where they differ, nothing is left behind.
    """
    registry = current_registry()
    from pefttool.export import merge as merging
    from pefttool.export.reload import Opening
    from pefttool.setup import allocator

    allocator.give_back_freed_memory()  # one model comes after another
    wanted = merging.Wanted(**{name: options.pop(name) for name in ("into", "save_as", "tolerance")})
    done = merging.merge(run, registry, out, wanted, Opening(**options))
    if as_json:
        print_json(done.as_json())
        return
    how = "layer by layer" if done.whole is None else f"in memory as a whole: {done.whole}"
    click.echo(f"merged into the weights {_into(done)}, {done.dtype}, {how}")
    click.echo(f"held out: {done.agreement} ({done.tolerance:g} is allowed)")
    if done.agreement.share is not None:
        click.echo(f"          {done.agreement.share:.1%} of what the adapter does to the outputs")
    if done.as_trained is not None:
        click.echo(f"against the adapter on the weights that it was trained on: {done.as_trained}")
    click.echo(f"folder: {done.folder}")
    if done.plain is None:
        click.echo(
            f"use it:  pefttool predict {done.folder} ... (the head is the task's own: transformers has no class)"
        )
    else:
        click.echo(f"use it:  transformers.{done.plain}.from_pretrained({str(done.folder)!r})")


def _into(done: Any) -> str:
    return "that it was trained on" if done.into == "trained-on" else "of the original model"
