"""Up to how many rows the fused kernels beat dequantising and the vendor's product, on the card that is here.

Measured with NF4 weights and nested scales, in bfloat16, of the shapes of one Llama-3.1-8B block, the most used open
model that a quantised base is for. `dispatch` uses the limits for every weight, of 8 bits too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, log
from pathlib import Path
from statistics import median

import torch

from pefttool_kernels import backends, dispatch, machine
from pefttool_kernels.dispatch import Direction
from pefttool_kernels.layout import FourBitWeight
from pefttool_kernels.modules import view_4bit
from pefttool_kernels.timing import measure

#: [N, K] -> how many linear layers of a block have it.
SHAPES = {(4096, 4096): 2, (1024, 4096): 2, (14336, 4096): 2, (4096, 14336): 1}
ROWS = (16, 32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
ROUNDS = 15
FUSED, LIBRARY = "triton", "dequantize"
DTYPE = torch.bfloat16
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")


class NothingToTune(RuntimeError):
    """This device has no choice between the fused kernels and the vendor's library; the message says why."""


@dataclass(frozen=True)
class Point:
    """One block's products with `rows` rows of input: milliseconds in all, each way."""

    direction: Direction
    rows: int
    fused: float
    library: float


def crossover(points: Sequence[Point]) -> int:
    """Up to how many rows to choose the fused kernels: 0 for never, the most rows that were measured for always.

    The limit under which the products, all numbers of rows counting alike, lose least against always knowing better:
    the sum of the logarithms of the chosen times is least. A single noisy point moves it by little. Of equal limits
    the lowest.
    """
    ordered = sorted(points, key=lambda point: point.rows)
    best, lowest = 0, inf
    for limit in (0, *(point.rows for point in ordered)):
        cost = sum(log(point.fused if point.rows <= limit else point.library) for point in ordered)
        if cost < lowest:
            best, lowest = limit, cost
    return best


def refusal(device: torch.device) -> str | None:
    """Why there is nothing to tune on this device, or None."""
    if device.type != "cuda":
        return f"there is no choice to measure on {device.type!r}: fused kernels run on CUDA devices"
    site = dispatch.Site("linear_4bit", "forward", ROWS[0], *next(iter(SHAPES)), DTYPE)
    return dispatch.refusal(FUSED, site, machine.of(device))


def run(device: torch.device) -> Iterator[Point]:
    """Measure every number of rows, forward and backward. NothingToTune before anything is measured."""
    reason = refusal(device)
    if reason:
        raise NothingToTune(reason)
    yield from points(device, SHAPES, ROWS)


def points(
    device: torch.device,
    shapes: dict[tuple[int, int], int],
    rows: Sequence[int],
    rounds: int = ROUNDS,
    contestants: tuple[str, str] = (FUSED, LIBRARY),
) -> Iterator[Point]:
    """One point for each number of rows and direction; the two backends take turns. `shapes` as SHAPES."""
    weights = {shape: _weight(shape, device) for shape in shapes}
    for direction in DIRECTIONS:
        for count in rows:
            totals = [0.0, 0.0]
            for shape, layers in shapes.items():
                runs = {name: _product(name, direction, weights[shape], count) for name in contestants}
                times = measure.take_turns(runs, device, rounds=rounds)
                totals = [total + layers * median(times[name]) for total, name in zip(totals, contestants, strict=True)]
            yield Point(direction, count, *totals)


def _weight(shape: tuple[int, int], device: torch.device) -> FourBitWeight:
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(DTYPE)
    return view_4bit(measure.quantised("nf4", dense.to(device)))


def _product(backend: str, direction: Direction, weight: FourBitWeight, rows: int) -> Callable[[], object]:
    device = weight.packed.device
    if direction == "forward":
        x = torch.randn(rows, weight.in_features, device=device).to(DTYPE)
        return lambda: backends.forward(backend, x, weight, None, None, None)
    g = torch.randn(rows, weight.out_features, device=device).to(DTYPE)
    return lambda: backends.backward(backend, g, weight, None, None)


def store(device: torch.device, measured: Sequence[Point]) -> tuple[dict[Direction, int], Path]:
    """Keep the limits of this card, for every process that starts from now on."""
    limits = {
        direction: crossover([point for point in measured if point.direction == direction]) for direction in DIRECTIONS
    }
    return limits, machine.record_rows(machine.of(device).name, limits["forward"], limits["backward"])
