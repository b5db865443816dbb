"""`pefttool run` and `resume`: fine-tune, or go on with a run, and show what it brought."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pefttool.api.errors import PefttoolError, RunError
from pefttool.cli.common import current_registry, read_recipe, recipe_options
from pefttool.files import strict_json
from pefttool.inference.verdict import NO_BETTER

if TYPE_CHECKING:
    from pefttool.config.recipe import Recipe
    from pefttool.config.registry import Registry
    from pefttool.export.check import Checked
    from pefttool.inference.witness import Witness
    from pefttool.runs.resuming import Resume
    from pefttool.training.finishing import Finished


@click.command("run")
@recipe_options
@click.option(
    "--skip-bad-rows", is_flag=True, help="Leave rows that cannot be used out, and write them to bad_rows.jsonl."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run(skip_bad_rows: bool, as_json: bool, **flags: Any) -> None:
    """Fine-tune a pretrained model. With --adapter alone, runs the built-in example."""
    registry = current_registry()
    fine_tune(read_recipe(registry, **flags), registry, skip_bad_rows, as_json)


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


def fine_tune(
    recipe: Recipe, registry: Registry, skip_bad_rows: bool, as_json: bool, resume: Resume | None = None
) -> None:
    """Run, and print what it brought."""
    from pefttool import run as stages
    from pefttool.setup import allocator

    # A run that streams has little memory; any other run is faster with the memory that was freed.
    _ = allocator.give_back_freed_memory() if recipe.memory.stream else allocator.keep_freed_memory()
    finished = stages.run(recipe, registry, skip_bad_rows=skip_bad_rows, resume=resume)
    if finished.main_process:
        report(finished, recipe, registry, as_json)


def report(finished: Finished, recipe: Recipe, registry: Registry, as_json: bool) -> None:
    """Check the adapter, print what the run brought, and raise what the check found: said last, so nothing is lost."""
    checked: Checked | str | None = None
    try:
        if recipe.check != "none":
            checked = check(finished.folder, registry, recipe, finished.trained)
    finally:
        _print(finished, checked, as_json)


def check(folder: Path, registry: Registry, recipe: Recipe, trained: Witness | None = None) -> Checked | str:
    """The check that ends a run; whatever fails in it, `pefttool resume` makes it again."""
    from pefttool.config.plugins import one_line
    from pefttool.export import check as checking

    try:
        return checking.after_run(folder, registry, recipe, trained)
    except PefttoolError:
        raise
    except Exception as error:
        raise RunError(
            f"{folder} is finished, but its check failed ({one_line(error)}): repeat it with `pefttool resume {folder}`"
        ) from error


def _print(finished: Finished, checked: Checked | str | None, as_json: bool) -> None:
    if as_json:
        document: dict[str, Any] = {
            "folder": str(finished.folder),
            "adapter": str(finished.adapter),
            "before": dict(finished.before),
            "after": dict(finished.after),
            "improved": finished.improved,
            "samples": list(finished.samples),
        }
        if checked is not None:
            document["check"] = checked if isinstance(checked, str) else checked.as_json()
        click.echo(strict_json.dumps(document))
        return
    _print_samples(finished.samples)
    click.echo()
    for name in finished.after:
        click.echo(f"held-out {name}: {finished.before[name]:.4f} before, {finished.after[name]:.4f} after")
    if not finished.improved:
        click.echo(f"warning: {NO_BETTER}")
    click.echo(f"adapter: {finished.adapter}")
    if checked is not None:
        click.echo(f"checked: {checked if isinstance(checked, str) else checked.line()}")
    given = "--text TEXT" if finished.takes_text else "--data FILE"
    verb = f"chat {finished.folder}" if finished.talks else f"predict {finished.folder} {given}"
    click.echo(f"use it:  pefttool {verb}")
    for loader in sorted(finished.adapter.glob("load_*.py")):
        click.echo(f"\nwithout pefttool ({loader}):\n{loader.read_text(encoding='utf-8')}")


def _print_samples(samples: Any) -> None:
    for number, sample in enumerate(samples, 1):
        click.echo(f"\nheld-out row {number}: {_row(sample['row'])}")
        for when in ("before", "after"):
            click.echo(f"  {when:>6}: {_short(sample[when])}")


def _row(values: Mapping[str, Any], limit: int = 300, beside: int = 60) -> str:
    """A row with a text: that, and behind it what is short enough to be told with it, such as its label."""
    if not isinstance(values.get("text"), str):
        return _short(values, limit)
    others = [f"{name}: {shown}" for name, v in values.items() if name != "text" and len(shown := str(v)) <= beside]
    told = f" ({', '.join(others)})" if others else ""
    return f"{_short(values, max(limit - len(told), limit // 2))}{told}"


def _short(value: Any, limit: int = 300) -> str:
    """A row or an answer on one line: the text itself where there is one."""
    if isinstance(value, dict):
        if "messages" in value:
            value = next((m["content"] for m in reversed(value["messages"]) if m["role"] == "user"), value)
        else:
            value = next((value[k] for k in ("answer", "continuation", "text") if k in value), value)
    if isinstance(value, dict) and "label" in value and "score" in value:
        value = f"{value['label']} ({value['score']:.2f})"
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
