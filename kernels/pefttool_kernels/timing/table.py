"""The table of `measure`'s timings, and their JSON lines: for `pefttool kernels bench` and for kernels/bench."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from pefttool_kernels.timing import measure

COLUMNS = {measure.OURS: "pefttool", measure.LIBRARY: "bnb", measure.REPACKED: "repacked", measure.DENSE: "dense"}
RATIOS = (measure.LIBRARY, measure.REPACKED, measure.DENSE)
LABEL, WHAT, TIME, RATIO = 22, 17, 10, 9  # widths


def shape(text: str) -> tuple[int, int]:
    """(N, K) of "NxK". ValueError for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,6})x([1-9]\d{0,6})", text, flags=re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is not a shape: write out_features x in_features, such as 4096x14336")
    return int(match[1]), int(match[2])


def run(
    kinds: Iterable[str],
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    seconds: float,
    show: Callable[[str], None],
    json_lines: Path | None = None,
) -> None:
    """Time every kind and shape, [N, K], with every number of rows, line by line; append JSON lines to a file."""
    count = torch.get_num_threads()
    threads = f"{count} thread{'' if count == 1 else 's'}, " if device.type == "cpu" else ""
    name = str(dtype).removeprefix("torch.")
    show(f"{device}: {threads}torch {torch.__version__}, {name}; times are medians in milliseconds")
    show(header())
    for kind in kinds:
        for n, k in shapes:
            for timing in measure.compare(kind, n, k, list(rows), device, dtype, seconds):
                show(line(timing))
                if json_lines is not None:
                    with json_lines.open("a", encoding="utf-8") as out:
                        out.write(json.dumps(timing.record()) + "\n")


def header() -> str:
    """The names of the columns."""
    times = "".join(f"{title:>{TIME}}" for title in COLUMNS.values())
    ratios = "".join(f"{'x ' + COLUMNS[name]:>{RATIO + 2}}" for name in RATIOS)
    return f"{'':{LABEL + WHAT}}{times}{ratios}   error"


def line(timing: measure.Timing) -> str:
    """One row: milliseconds by contestant, how many times faster we are, our relative error against float64."""
    label = f"{timing.kind} {timing.n}x{timing.k} M={timing.m}"
    times = "".join(_cell(timing.milliseconds.get(name), TIME, ".2f") for name in COLUMNS)
    ratios = "".join(_cell(timing.ratio(name), RATIO + 2, ".2f") for name in RATIOS)
    return f"{label:<{LABEL}}{timing.what:<{WHAT}}{times}{ratios}   {_cell(timing.error, 0, '.1e')}".rstrip()


def _cell(value: float | None, width: int, form: str) -> str:
    return " " * width if value is None else f"{value:>{width}{form}}"
