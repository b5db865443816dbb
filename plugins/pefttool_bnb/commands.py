"""`pefttool kernels`: which kernels a machine and a model will use, whether they are right, and how fast they are."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pefttool import PefttoolError, UsageError
from pefttool.cli.for_plugins import DEVICE, JSON, choose_device, find_model, print_json, print_table

if TYPE_CHECKING:
    import torch

    from pefttool_bnb.survey import Layers

KINDS = ("nf4", "fp4", "int8")
EXAMPLE = "example:smollm2-135m-instruct"
ROWS = 512
#: What `bench` measures unless it is told otherwise: under a minute on two cores.
SHAPES, BENCH_ROWS, SECONDS = ("1024x4096", "4096x4096"), (1, 64, 512), 0.5


@click.group("kernels", invoke_without_command=True)
@click.option("--model", metavar="MODEL", help="Folder, ORG/NAME[@REVISION] or SOURCE:REFERENCE; default: the example.")
@click.option("--quantize", type=click.Choice(KINDS), default="nf4", show_default=True, help="How weights are stored.")
@click.option(
    "--rows", type=click.IntRange(min=1), default=ROWS, show_default=True, help="Tokens in one training step."
)
@DEVICE
@JSON
@click.pass_context
def kernels(ctx: click.Context, model: str | None, quantize: str, rows: int, device: str, as_json: bool) -> None:
    """Show what multiplies by quantised weights here, and test it.

    Prints which backend each linear layer of a model will use on this machine, and why; then runs the self-test.
    The exit status is 1 if that finds a wrong result.
    """
    if ctx.invoked_subcommand is not None:
        return
    where, dtype = choose_device(device)
    folder, name = _model(model)
    from pefttool_bnb import loading
    from pefttool_bnb.survey import describe, survey
    from pefttool_kernels import machine
    from pefttool_kernels.selftest import selftest

    loading.bitsandbytes()
    here = machine.of(where)
    layers = survey(folder, quantize, rows, here, dtype)
    heading = {"model": name, "quantize": quantize, "dtype": str(dtype).removeprefix("torch."), **describe(here)}
    if not as_json:
        _print_survey(heading, layers)
    checks = selftest.run(where)
    verdicts = selftest.verdicts(checks)
    if as_json:
        document = {
            **heading,
            "layers": [asdict(group) for group in layers],
            "self_test": [check.record() for check in checks],
            "ok": all(check.ok for check in checks),
        }
        print_json(document)
    else:
        click.echo("\nself-test")
        for verdict in verdicts:
            click.echo(f"  {verdict.backend:<14}{verdict.text}")
    if not all(check.ok for check in checks):
        ctx.exit(1)


def _model(reference: str | None) -> tuple[Path, str]:
    if reference is not None:
        return find_model(reference, weights=False)
    try:
        return find_model(EXAMPLE, weights=False)
    except PefttoolError as error:
        raise UsageError(
            f"--model: none given, and the example model cannot be had here ({error}): give --model a folder,"
            " ORG/NAME on the hub, or SOURCE:REFERENCE"
        ) from error


def _print_survey(heading: dict[str, str], layers: tuple[Layers, ...]) -> None:
    for label, text in heading.items():
        click.echo(f"{label + ':':<20} {text}")
    click.echo()
    table = []
    for group in layers:
        who = (str(len(group.names)), f"[{group.out_features}, {group.in_features}]", _kinds(group.names))
        for product in group.products:
            table.append((*who, product.label, product.backend, product.reason))
            who = ("", "", "")
    print_table(("LAYERS", "WEIGHT", "NAMES", "PRODUCT", "BACKEND", "WHY"), table)
    click.echo("New heads and the output layer stay in floating point.")


def _kinds(names: tuple[str, ...]) -> str:
    """The last parts of the layers' names: q_proj, o_proj."""
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))


@kernels.command("bench")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(KINDS),
    default=("nf4",),
    show_default=True,
    help="How weights are stored.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    default=SHAPES,
    show_default=True,
    metavar="NxK",
    help="Weights [N, K].",
)
@click.option(
    "--m",
    "rows",
    multiple=True,
    type=click.IntRange(min=1),
    default=BENCH_ROWS,
    show_default=True,
    metavar="ROWS",
    help="Rows of input.",
)
@click.option("--seconds", type=click.FloatRange(min=0), default=SECONDS, show_default=True, help="Per comparison.")
@click.option("--json", "json_lines", type=click.Path(path_type=Path, dir_okay=False), help="Append JSON lines here.")
@DEVICE
def bench(
    kinds: tuple[str, ...],
    shapes: tuple[str, ...],
    rows: tuple[int, ...],
    seconds: float,
    json_lines: Path | None,
    device: str,
) -> None:
    """Time quantised products against bitsandbytes and dense ones.

    They take turns in one process. Options repeat: --m 16 --m 2048. The default takes less than a minute on two cores.
    """
    if json_lines is not None and not json_lines.parent.is_dir():
        raise UsageError(f"--json {json_lines}: there is no folder {json_lines.parent}")
    where, dtype = choose_device(device)
    from pefttool_bnb import loading

    loading.bitsandbytes()
    from pefttool_kernels.timing import table as timing_table

    try:
        parsed = [timing_table.shape(text) for text in shapes]
    except ValueError as error:
        raise UsageError(f"--shape: {error}") from error
    timing_table.run(kinds, parsed, rows, where, dtype, seconds, click.echo, json_lines)


@kernels.command("tune")
@click.option("--device", default="auto", show_default=True, help="auto, cuda or cuda:N.")
def tune(device: str) -> None:
    """Measure up to how many rows the fused kernels are faster, on a GPU.

    The limits are kept for this card: every run that starts afterwards goes by them.
    """
    where = _cuda(device)
    from pefttool_bnb import loading

    loading.bitsandbytes()
    from pefttool_kernels.timing import tune as tuning

    reason = tuning.refusal(where)
    if reason:
        raise UsageError(f"tune: there is nothing to tune here: {reason}")
    click.echo("milliseconds of one block's linear layers, nf4, bfloat16")
    click.echo(f"{'':<10}{'rows':>6}{'fused':>10}{'dequantize':>12}{'fused is':>12}")
    points = []
    for point in tuning.run(where):
        points.append(point)
        faster = f"{point.library / point.fused:.2f} x"
        click.echo(f"{point.direction:<10}{point.rows:>6}{point.fused:>10.3f}{point.library:>12.3f}{faster:>12}")
    limits, path = tuning.store(where, points)
    for direction, limit in limits.items():
        click.echo(f"{direction}: fused kernels up to {limit} rows")
    click.echo(f"kept in {path}")


def _cuda(asked: str) -> torch.device:
    """The device to tune. UsageError where it is no CUDA device."""
    where, _ = choose_device(asked)
    if where.type != "cuda":
        raise UsageError(f"tune: there is nothing to tune here: the fused kernels run on CUDA devices, not on {where}")
    return where
