"""The whole extension surface of pefttool: seven hooks.

A plugin is a module named by an entry point of the group `pefttool`; it implements some of these with
`@pefttool.hookimpl`. Every `register_*` hook is called once, when the registry is built, one plugin at a time and
in the order of the plugins' names; what it returns is selected by name only, never by order. Registering must be
cheap: import torch inside the methods of what you register. A `register_*` hook that raises is reported with its
plugin's name and distribution, and what that hook would have registered is left out; the rest keeps working. Two
objects with one name are an error that names both distributions. Hook wrappers are not supported.

A plugin states the version of the contract that it is written for, as `pefttool_api_version`: `API_VERSION` of the
pefttool that it was tested with. The number goes up by one in a release after which a plugin that kept to the doors
(docs/contract.md) may break: where a name leaves a door, where a method loses a parameter or is given another, is
called in another place, or has to be implemented. It stays where something is added that a plugin need not know: a
name, an optional method, a field with a default. A plugin of any other version is not loaded, and one line names it,
its distribution, both versions and the way out; everything else works. No older version is adapted: what a method is
given may have another meaning, and a wrong result is worse than a refusal.

Version 2: `attach`, `save`, `load` and `merge` of an adapter, `attachment.claim` and `peft_folder` have no `name`;
`Adapter.prepare` is given losses instead of batches; `Adapter.optimizer` is gone; `embedding_offload.device` is
`device_of`; a plugin imports through the doors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from pefttool.api.adapter import Adapter
    from pefttool.api.data import DataFormat, Source
    from pefttool.api.events import Event
    from pefttool.api.quantizer import Quantizer
    from pefttool.api.task import Task

PROJECT = "pefttool"
API_VERSION = 2
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_adapters() -> Sequence[Adapter]:
    """Return the adapters of this plugin: ways of making a pretrained model trainable.

    Each is chosen with `--adapter NAME`.
    """
    raise NotImplementedError


@hookspec
def register_tasks() -> Sequence[Task]:
    """Return the tasks of this plugin: what a row means, what the loss is, which metric decides.

    Each is chosen with `--task NAME`, or recognised from the columns of the data.
    """
    raise NotImplementedError


@hookspec
def register_quantizers() -> Sequence[Quantizer]:
    """Return the quantizers of this plugin: ways of storing the frozen weights in fewer bits.

    Each is chosen with `--quantize NAME`.
    """
    raise NotImplementedError


@hookspec
def register_formats() -> Sequence[DataFormat]:
    """Return the data formats of this plugin: each turns a file into rows.

    A format is chosen by looking at the file (`sniff`), or with `data.format: NAME`.
    """
    raise NotImplementedError


@hookspec
def register_sources() -> Sequence[Source]:
    """Return the sources of this plugin: each turns `NAME:REFERENCE` into a model folder or a data file on disk.

    `--model example:all-minilm-l6-v2` asks the source called `example`. What is neither a path nor of this form is
    looked up on the hub.
    """
    raise NotImplementedError


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to `cli`, a click group of this plugin's own.

    Called when the list of commands, or a command that is not the core's, is asked for. A name that is already taken
    is reported, and that command left out.
    """


@hookspec
def on_event(event: Event) -> None:
    """Observe a run. Called for every event, on rank 0 only, in the training process, between two steps.

    The core has already written the event to `events.jsonl`. `event.control.stop(reason)` asks the run to end at
    the next step boundary. An exception disables this observer for the rest of the run, with a notice; the run and
    the other observers go on. The return value is ignored.
    """
