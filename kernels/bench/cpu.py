"""Quantised products on the CPU, side by side with bitsandbytes, in one alternating run.

python kernels/bench/cpu.py                        the shapes and rows of the documentation
python kernels/bench/cpu.py --kind int8 --m 512    some of them
python kernels/bench/cpu.py --json results.jsonl   every figure as a line of JSON, too
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch

from pefttool_kernels.timing import table

SHAPES = [(n, k) for n in (1024, 4096, 14336) for k in (1024, 4096, 14336)]
ROWS = (1, 16, 64, 256, 512, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="+", default=["nf4"], choices=["nf4", "fp4", "int8"])
    parser.add_argument("--shape", nargs="+", type=table.shape, default=SHAPES, metavar="NxK")
    parser.add_argument("--m", nargs="+", type=int, default=list(ROWS), metavar="ROWS")
    parser.add_argument("--seconds", type=float, default=1.0, help="per comparison, at least five rounds")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table.run(
        arguments.kind,
        arguments.shape,
        arguments.m,
        torch.device("cpu"),
        torch.bfloat16,
        arguments.seconds,
        functools.partial(print, flush=True),
        arguments.json,
    )


if __name__ == "__main__":
    main()
