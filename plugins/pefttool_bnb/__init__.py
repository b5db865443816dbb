"""Quantizers that store frozen linear weights with bitsandbytes: nf4, fp4 and int8; and `pefttool kernels`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pefttool import Quantizer, hookimpl

if TYPE_CHECKING:
    import click

pefttool_api_version = 2


@hookimpl
def register_quantizers() -> Sequence[Quantizer]:
    from pefttool_bnb.eight_bit import Int8
    from pefttool_bnb.four_bit import FP4, NF4

    return [FP4(), Int8(), NF4()]


@hookimpl
def register_commands(cli: click.Group) -> None:
    from pefttool_bnb.commands import kernels

    cli.add_command(kernels)
