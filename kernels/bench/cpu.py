"""Quantised products on the CPU, side by side with bitsandbytes, in one alternating run.

python kernels/bench/cpu.py                        the shapes and rows of the documentation
python kernels/bench/cpu.py --kind int8 --m 512    some of them
python kernels/bench/cpu.py --json results.jsonl   every figure as a line of JSON, too
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from pefttool_kernels import measure

SHAPES = [(n, k) for n in (1024, 4096, 14336) for k in (1024, 4096, 14336)]
ROWS = (1, 16, 64, 256, 512, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="+", default=["nf4"], choices=["nf4", "fp4", "int8"])
    parser.add_argument("--shape", nargs="+", default=[f"{n}x{k}" for n, k in SHAPES], metavar="NxK")
    parser.add_argument("--m", nargs="+", type=int, default=list(ROWS), metavar="ROWS")
    parser.add_argument("--seconds", type=float, default=1.0, help="per comparison, at least five rounds")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; times are medians in milliseconds")
    print(f"{'':38}{'pefttool':>10}{'bnb':>10}{'repacked':>10}{'dense':>10}   times as fast as bnb, repacked; error")
    for kind in arguments.kind:
        for shape in arguments.shape:
            n, k = map(int, shape.split("x"))
            device = torch.device("cpu")
            for timing in measure.compare(kind, n, k, arguments.m, device, torch.bfloat16, arguments.seconds):
                print(line(timing), flush=True)
                if arguments.json:
                    with arguments.json.open("a", encoding="utf-8") as out:
                        out.write(json.dumps(timing.record()) + "\n")


def line(timing: measure.Timing) -> str:
    """One row of the table."""
    names = (measure.OURS, measure.LIBRARY, measure.REPACKED, measure.DENSE)
    cells = "".join(_cell(timing.milliseconds.get(name), ">10.2f") for name in names)
    ratios = "".join(_cell(timing.ratio(name), ">8.2f") for name in (measure.LIBRARY, measure.REPACKED))
    label = f"{timing.kind} {timing.n}x{timing.k} M={timing.m}"
    return f"{label:<21}{timing.what:<17}{cells}   {ratios}   {_cell(timing.error, '.1e')}"


def _cell(value: float | None, form: str) -> str:
    width = int("".join(c for c in form.split(".")[0] if c.isdigit()) or 0)
    return " " * width if value is None else format(value, form)


if __name__ == "__main__":
    main()
