"""What keeping freed memory for the next step brings: the whole stack with it and without, taking turns.

python benchmarks/freed_memory.py                     all four jobs, four rounds: about 15 minutes
python benchmarks/freed_memory.py head classification
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import cells
from jobs import JOBS, local_model, write_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of {', '.join(JOBS)}; default: all")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    for name in arguments.jobs or JOBS:
        ratios = measured(name, arguments.rounds)
        median = statistics.median(ratios)
        print(f"{name}: kept is faster by {median:.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def measured(name: str, rounds: int) -> list[float]:
    """Speed with freed memory kept, by that without, of each round."""
    job = JOBS[name]
    model = local_model(job)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(job, Path(folder), job.rows, job.batch_size)
        for seed in range(1, rounds + 1):
            speeds = {}
            for kept in (True, False) if seed % 2 else (False, True):
                cell = cells.pefttool(job, data, model, seed, (), () if kept else ("allocator",))
                speeds[kept] = cell.speed
                print(f"{name}, round {seed}, {'kept' if kept else 'not'}: {cell.speed:.0f}, {cell.peak:.0f} MiB")
            found.append(speeds[True] / speeds[False])
    return found


if __name__ == "__main__":
    main()
