"""`pefttool eval`, `predict` and `chat`: use what a run made."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pefttool.api.errors import DataError, Refused, UsageError
from pefttool.cli.common import current_registry
from pefttool.files import strict_json

if TYPE_CHECKING:
    from pefttool.api.values import Row
    from pefttool.export.reload import Reloaded

RUN = click.argument("run", type=click.Path(path_type=Path))
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
DTYPE = click.option("--dtype", default=None, help="float32, bfloat16 or float16; default: what it was trained in.")
FORMAT = click.option("--format", "data_format", default=None, help="Data format; default: what the run's recipe says.")
BATCH = click.option(
    "--batch-size", type=click.IntRange(min=1), default=None, help="Rows at a time; default: the run's."
)
TRUST = click.option(
    "--trust-remote-code",
    metavar="REPO@REVISION",
    default=None,
    help="Run the Python code that comes with the base model, which you have read at this revision.",
)
GENERATION = click.option(
    "-o",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Generation settings, such as -o generation.max_new_tokens=20.",
)


def _generation(overrides: tuple[str, ...]) -> dict[str, Any]:
    from pefttool.config.recipe import combine
    from pefttool.config.settings import GenerationSettings
    from pefttool.config.validation import validate

    document = combine({}, {}, overrides)
    unknown = sorted(set(document) - {"generation"})
    if unknown:
        raise UsageError(f"-o {unknown[0]}: only generation.* can be changed here: use -o generation.KEY=VALUE")
    values = document.get("generation") or {}
    complaints: list[str] = []
    if not isinstance(values, dict):
        complaints.append(f"-o generation: {values!r} is not a section: use -o generation.KEY=VALUE")
    elif validate(GenerationSettings, values, "generation.", complaints) is not None:
        return dict(values)
    raise Refused(complaints)


def _tell_unused(command: str, rows: Sequence[Row], loaded: Reloaded) -> None:
    """Say what of these rows the task does not use, if there is anything."""
    from pefttool.data import unused_columns

    left = unused_columns.line(rows, loaded.task, loaded.setting.options)
    if left is not None:
        click.echo(f"{command}: {left}", err=True)


@click.command("eval")
@RUN
@click.option("--data", "data", default=None, help="Rows with answers; default: the run's own held-out rows.")
@FORMAT
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
@DEVICE
@DTYPE
@TRUST
@BATCH
def evaluate(
    run: Path,
    data: str | None,
    data_format: str | None,
    as_json: bool,
    device: str,
    dtype: str | None,
    trust_remote_code: str | None,
    batch_size: int | None,
) -> None:
    """Held-out metrics of a finished run."""
    registry = current_registry()
    from pefttool.data import encoding
    from pefttool.export import delivered_metrics, held_out
    from pefttool.export.reload import reload

    loaded = reload(run, registry, device, dtype, None, trust_remote_code)
    chosen = held_out.of(run, registry, loaded, data, data_format)
    if data is not None:
        _tell_unused("eval", chosen, loaded)
    # Of the own rows the run left the bad ones out, too; of other rows none may be bad.
    bad_rows = (lambda problems, good: None) if data is None else None
    metrics, encoded = delivered_metrics.measure(loaded, chosen, batch_size, bad_rows)
    if as_json:
        click.echo(strict_json.dumps({"rows": len(encoded.rows), "left_out": len(encoded.dropped), **metrics}))
    else:
        click.echo(f"{len(encoded.rows)} rows")
        if encoded.dropped:
            click.echo(encoding.left_out(encoded, "rows", "judge by"))
        for name, value in metrics.items():
            click.echo(f"{name}: {value:.4f}")


@click.command("predict")
@RUN
@click.option("--data", "data", default=None, help="File or folder with rows; answers need not be there.")
@FORMAT
@click.option("--text", "texts", multiple=True, help="A text to answer (repeatable).")
@DEVICE
@DTYPE
@TRUST
@BATCH
@GENERATION
def predict(
    run: Path,
    data: str | None,
    data_format: str | None,
    texts: tuple[str, ...],
    device: str,
    dtype: str | None,
    trust_remote_code: str | None,
    batch_size: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Answers as JSON lines on standard output, one a row, in the rows' order."""
    if (data is None) == (not texts):
        raise UsageError("predict: give either --data FILE or --text TEXT, and not both")
    registry = current_registry()
    from pefttool.data import rows
    from pefttool.export import delivered_metrics, held_out
    from pefttool.export.reload import reload
    from pefttool.inference.prompts import text_alone
    from pefttool.toolkit import truncation

    generation = _generation(overrides)
    loaded = reload(run, registry, device, dtype, generation, trust_remote_code)
    if data is not None:
        path, check = rows.resolve(data, registry), loaded.task.check_input
        chosen = held_out.given(path, registry, loaded, check, data_format)
        _tell_unused("predict", chosen, loaded)
    else:
        chosen = tuple(text_alone(text, loaded.setting.options) for text in texts)
        for row in chosen:
            complaint = loaded.task.check_input(row.values, loaded.setting.options)
            if complaint:
                raise DataError(f"{row.place}: {complaint}; mend it")
    order = delivered_metrics.order_of(loaded, chosen, batch_size)
    with truncation.counted() as counted:
        for answer in delivered_metrics.answers(loaded, chosen, order):
            click.echo(strict_json.dumps(answer))
    line = counted.line(len(chosen), loaded.setting)
    if line is not None:
        click.echo(f"predict: {line}", err=True)


@click.command("chat")
@RUN
@DEVICE
@DTYPE
@TRUST
@GENERATION
@click.option("--system", default=None, help="A system message to begin with.")
def chat(
    run: Path,
    device: str,
    dtype: str | None,
    trust_remote_code: str | None,
    overrides: tuple[str, ...],
    system: str | None,
) -> None:
    """Talk to a chat model; an empty line or Ctrl-D ends it."""
    registry = current_registry()
    from pefttool.export.reload import reload
    from pefttool.inference.prompts import talks, typed
    from pefttool.toolkit import truncation

    generation = _generation(overrides)
    loaded = reload(run, registry, device, dtype, generation, trust_remote_code)
    if not talks(loaded.task, loaded.setting.options):
        raise UsageError(f"{run} was trained for {loaded.task.name}, which does not talk: use pefttool predict {run}")
    turns = [{"role": "system", "content": system}] if system else []
    while True:
        click.echo("you> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line.strip():
            return
        turns.append({"role": "user", "content": line.strip()})
        row = typed(turns)
        with truncation.counted() as counted:
            (reply,) = loaded.predict([row])
        text = next(iter(reply.values()))
        turns.append({"role": "assistant", "content": text})
        click.echo(text)
        cut = counted.line(1, loaded.setting)
        if cut is not None:
            click.echo(f"chat: {cut}", err=True)
