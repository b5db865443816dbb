"""What each linear layer of a model will use on a machine, and why: from its config alone, no weight is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pefttool import Facts, UsageError
from pefttool.cli.for_plugins import abstract_model
from pefttool_bnb import loading
from pefttool_kernels import dispatch, machine
from pefttool_kernels.dispatch import Direction, Machine, Operator

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Product:
    """One product of a layer: what computes it, and why."""

    direction: Direction
    rows: int
    needs_grad: bool
    backend: str
    reason: str

    @property
    def label(self) -> str:
        rows = f"{self.rows} row{'' if self.rows == 1 else 's'}"
        return f"{self.direction}, {rows}{'' if self.needs_grad else ', no gradients'}"


@dataclass(frozen=True)
class Layers:
    """The linear layers of one shape: their weights are [out_features, in_features]."""

    out_features: int
    in_features: int
    names: tuple[str, ...]
    products: tuple[Product, ...]


def survey(folder: Path, quantizer: str, rows: int, here: Machine, dtype: torch.dtype) -> tuple[Layers, ...]:
    """The backbone's linear layers by shape, in the model's order: training with `rows` tokens, generation with one.

    New heads and the output layer are never quantised, and not in it. UsageError for a model that the quantizer
    refuses.
    """
    from torch import nn
    from transformers import AutoModel

    model = abstract_model(folder, AutoModel)
    names: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            names[module.out_features, module.in_features].append(name)
    linear = tuple(name for group in names.values() for name in group)
    refused = loading.refusal(quantizer, Facts(type(model).__name__, linear_modules=linear, device=here.device_type))
    if refused:
        raise UsageError(f"--quantize: {refused}")
    operator: Operator = "linear_8bit" if quantizer == "int8" else "linear_4bit"
    return tuple(
        Layers(n, k, tuple(group), tuple(_products(operator, n, k, rows, here, dtype)))
        for (n, k), group in names.items()
    )


def _products(operator: Operator, n: int, k: int, rows: int, here: Machine, dtype: torch.dtype) -> Iterator[Product]:
    unreadable = _unreadable(operator, n, k, here, dtype)
    products: tuple[tuple[Direction, int, bool], ...] = (
        ("forward", rows, True),
        ("backward", rows, True),
        ("forward", 1, False),
    )
    for direction, m, needs_grad in products:
        site = dispatch.Site(operator, direction, m, n, k, dtype, needs_grad=needs_grad, unreadable=unreadable)
        choice = dispatch.choose(site, here)
        yield Product(direction, m, needs_grad, choice.backend, choice.reason)


def _unreadable(operator: Operator, n: int, k: int, here: Machine, dtype: torch.dtype) -> str | None:
    """Why triton's kernels will not read an 8-bit weight of this shape; of 4-bit ones `dispatch` itself knows."""
    if operator == "linear_4bit" or here.device_type != "cuda" or here.triton_missing:
        return None
    import torch

    from pefttool_kernels.layout import EightBitWeight
    from pefttool_kernels.triton import _launch

    values = torch.empty(n, k, dtype=torch.int8, device="meta")
    return _launch.supports_8bit(EightBitWeight(values, torch.empty(n, device="meta")), dtype)


def describe(here: Machine) -> dict[str, str]:
    """The machine in words: what it is, and which of the kernels can be had on it."""
    import torch

    if here.device_type == "cpu":
        return {
            "device": f"cpu, {torch.get_num_threads()} thread{'' if torch.get_num_threads() == 1 else 's'}",
            "native code": here.native_missing or "ready",
            "triton": machine.not_installed() or "installed; its kernels run on GPUs",
        }
    found = {"device": f"{here.device_type} {here.name}".strip(), "triton": here.triton_missing or "ready"}
    if here.capability is not None:
        found["compute capability"] = "{}.{}".format(*here.capability)
        found["multiprocessors"] = str(here.processors)
        found["free memory"] = "unknown" if here.free_bytes is None else f"{here.free_bytes / 2**30:.1f} GiB"
        found["fused kernels"] = _limits(here)
    return found


def _limits(here: Machine) -> str:
    if here.fused_rows:
        limits = ", ".join(f"{direction} up to {rows} rows" for direction, rows in here.fused_rows.items())
        return f"{limits} (measured on this card)"
    limit = dispatch.fused_limit(here)
    return f"up to {limit} rows (calculated; `pefttool kernels tune` measures)"
