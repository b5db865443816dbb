"""`pefttool adapters`, `tasks`, `quantizers`, `formats`, `sources`: what is registered, from one factory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from pefttool.cli.common import current_registry, plugin_options
from pefttool.cli.options import options
from pefttool.cli.output import print_json, print_table
from pefttool.config.registry import Kind

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def summary(registered: object) -> str:
    """The first line of the class's own docstring."""
    text = (type(registered).__doc__ or "").strip()
    return text.splitlines()[0].strip() if text else ""


def _entry(kind: Kind[Any], name: str) -> dict[str, Any]:
    plugin = kind.owner(name)
    return {
        "name": name,
        "summary": summary(kind[name]),
        "plugin": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
    }


def _of_adapter(adapter: Any) -> dict[str, Any]:
    return {"frozen_backbone": adapter.frozen_backbone, "trains_base": adapter.trains_base}


def _of_task(task: Any) -> dict[str, Any]:
    metric, direction = task.primary
    return {"primary": metric, "direction": direction, "generative": task.generative}


def _of_quantizer(quantizer: Any) -> dict[str, Any]:
    return {"streams": quantizer.streams}


def _of_source(source: Any) -> dict[str, Any]:
    return {"references": dict(source.references())}


def listing(plural: str, title: str, more: Callable[[Any], dict[str, Any]] = lambda _: {}) -> click.Group:
    """The command `pefttool PLURAL` with its `show NAME`; `more` adds what only this kind has to `show`."""

    @click.group(plural, invoke_without_command=True, help=f"List the {title}.")
    @JSON
    @click.pass_context
    def group(ctx: click.Context, as_json: bool) -> None:
        if ctx.invoked_subcommand is not None:
            return
        kind = current_registry().kinds[plural]
        entries = [_entry(kind, name) for name in kind]
        if as_json:
            print_json(entries)
        else:
            rows = [(e["name"], f"{e['distribution']} {e['version']}", e["summary"]) for e in entries]
            print_table(("NAME", "FROM", "WHAT IT IS"), rows)

    @group.command("show", help=f"Everything about one of the {title}.")
    @click.argument("name")
    @JSON
    @plugin_options
    def show(name: str, as_json: bool) -> None:
        kind = current_registry().kinds[plural]
        found = kind[name]
        entry = {**_entry(kind, name), **more(found)}
        described = options(kind, name) if hasattr(found, "Options") else []
        if as_json:
            print_json({**entry, "options": [asdict(option) for option in described]})
            return
        _print_entry(entry)
        if described:
            click.echo()
            rows = [(o.name, o.type, o.default_text, o.allowed, o.description) for o in described]
            print_table(("OPTION", "TYPE", "DEFAULT", "ALLOWED", "DESCRIPTION"), rows)

    return group


def _print_entry(entry: dict[str, Any]) -> None:
    for key, value in entry.items():
        label = f"{key.replace('_', ' ')}:"
        if isinstance(value, dict):
            click.echo(label)
            for name, text in value.items():
                click.echo(f"  {name}  {text}")
        else:
            text = ("yes" if value else "no") if isinstance(value, bool) else value
            click.echo(f"{label:16} {text}")


adapters = listing("adapters", "adapters", _of_adapter)
tasks = listing("tasks", "tasks", _of_task)
quantizers = listing("quantizers", "quantizers", _of_quantizer)
formats = listing("formats", "data formats")
sources = listing("sources", "sources of models and data", _of_source)
