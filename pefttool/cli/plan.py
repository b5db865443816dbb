"""`pefttool plan`: what a run would take, and whether it fits, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pefttool.api.values import told
from pefttool.cli.common import current_registry, read_recipe, recipe_options
from pefttool.cli.output import print_json, print_table

if TYPE_CHECKING:
    from pefttool.config.recipe import Recipe
    from pefttool.forecast.forecast import Forecast
    from pefttool.forecast.throughput import Feeding


@click.command("plan")
@recipe_options
@click.option("--for", "device", metavar="DEVICE", help="Plan for another machine: cuda:8GiB, cpu:16GiB, mps:16GiB.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: peak_bytes, parts, and the rest.")
def plan(device: str | None, as_json: bool, **flags: Any) -> None:
    """What a run would take, and whether it fits, before it starts.

    One training step is simulated without weights: how much memory the step holds at its peak, and for what. A model's
    config.json is enough, and data is not needed. With --budget the settings closest to the recipe's that keep to it
    are chosen, or what would fit is said.
    """
    recipe = read_recipe(current_registry(), data_optional=True, **flags)
    made = _forecast(recipe, device, _silent if as_json else _say)
    feeding = _feeding(made)
    if as_json:
        print_json({**made.as_json(), "feeding": feeding and feeding.as_json()})
        return
    _show(made)
    if feeding is not None:
        click.echo(f"· {feeding}")


def _feeding(made: Forecast) -> Feeding | None:
    """Measured where blocks are streamed, and once: rates of this machine, whatever is planned for."""
    if not made.plan.recipe.memory.stream:
        return None
    from pefttool.forecast import throughput as feeding

    return feeding.floor(made.plan)


def _forecast(recipe: Recipe, device: str | None, say: Callable[[str], None]) -> Forecast:
    from dataclasses import replace

    from pefttool.config import sizes
    from pefttool.files import store
    from pefttool.forecast import budget, forecast
    from pefttool.setup import device_memory, devices
    from pefttool.setup import plan as plans

    machine, memory = devices.report(), None
    if device is not None:
        machine, name, memory = devices.imagined(device, machine)
        recipe = replace(recipe, device=name)
    planned = plans.make(recipe, current_registry(), machine=machine)
    if device is None:
        memory = device_memory.memory_here(planned.choice.device)
    data = forecast.known(planned, store.of_user(say))
    if recipe.memory.budget is None:
        return forecast.make(planned, memory, data)
    allowed = sizes.parse(recipe.memory.budget)
    return replace(budget.fit(planned, allowed, data, say), memory=allowed if memory is None else min(memory, allowed))


def _silent(text: str) -> None:
    pass


def _say(text: str) -> None:
    click.echo(f"· {text}", err=True)


def _show(made: Forecast) -> None:
    from pefttool.config import sizes

    planned, estimate = made.plan, made.estimate
    click.echo(f"{planned.adapter.name} · {planned.task.name} · {planned.model.id}")
    for notice in planned.notices:
        click.echo(f"· {told(notice)}")
    longest = "the longest of this data" if made.measured_lengths else "the longest possible"
    size = f"{made.rows} x {made.tokens} tokens ({longest})" if planned.task.truncates else f"{made.rows} rows"
    click.echo(
        f"· {planned.facts.architecture}, {planned.facts.parameters:,} parameters; micro-batches of {size};"
        f" the peak is in: {estimate.phase}"
    )
    rows = [(name, sizes.show(size), "simulated") for name, size in estimate.parts.items() if size]
    rows.append(("tensors", sizes.show(estimate.peak_bytes), "simulated: the sum"))
    rows += [(share.name, sizes.show(share.bytes), share.source) for share in made.outside]
    rows.append(("total", sizes.show(made.total_bytes), _verdict(made)))
    print_table(("part", "at the peak", "how it is known"), rows)


def _verdict(made: Forecast) -> str:
    from pefttool.config import sizes

    if made.memory is None:
        return "add --for cuda:8GiB or --budget to compare it with something"
    if made.fits:
        return f"fits in {sizes.show(made.memory)}"
    return f"does not fit in {sizes.show(made.memory)}: --budget {made.memory / 2**30:.4g}GiB looks for what would"
