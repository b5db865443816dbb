"""pefttool against transformers.Trainer + peft + bitsandbytes, in one alternating run.

    python benchmarks/side_by_side.py                          every job, three rounds: about 20 minutes on two cores
    python benchmarks/side_by_side.py --jobs lm lm-nf4 --rounds 5
    python benchmarks/side_by_side.py --ladder                 what each technique contributes, instead
    python benchmarks/side_by_side.py --quick                  does it run at all? a minute; its figures mean nothing

Every cell is a process of its own; contestants take turns within a round, in an order that rotates, and a round's
number is the seed. Ratios are of runs of the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ladder
from cells import Measured, peer, pefttool
from jobs import JOBS, Data, Job, local_model, write_data

OURS, PEER, TUNED = "pefttool", "peer", "peer, tuned"
#: Real tokens in an optimiser step may differ by this between contestants.
STEP_TOKENS = 0.10
START, END = "<!-- made by benchmarks/side_by_side.py -->", "<!-- end -->"

Cell = Callable[[int], Measured]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=float, default=1.0, help="share of each job's rows")
    parser.add_argument("--quick", action="store_true", help="one round, a twelfth of the rows")
    parser.add_argument("--ladder", action="store_true", help="the ablation ladder of these jobs instead")
    parser.add_argument("--json", type=Path, default=None, help="write every measurement here")
    parser.add_argument("--markdown", type=Path, default=None, help="replace what stands between the markers here")
    arguments = parser.parse_args()
    rounds, share = (1, 1 / 12) if arguments.quick else (arguments.rounds, arguments.rows)
    found: dict[str, dict[str, list[Measured]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.jobs:
            job = JOBS[name]
            size = max(2 * job.batch_size, round(job.rows * share))
            data = write_data(job, Path(folder), size, max(job.batch_size, round(job.eval_rows * share)))
            cells = ladder.contestants(job, data) if arguments.ladder else contestants(job, data)
            found[name] = take_turns(job, cells, rounds)
            if arguments.json:
                arguments.json.write_text(json.dumps(document(found), indent=1), encoding="utf-8")
    text = "\n\n".join(
        (ladder.table if arguments.ladder else table)(JOBS[name], results) for name, results in found.items()
    )
    text += f"\n\n{provenance()}"
    print(text)
    if arguments.markdown:
        write(arguments.markdown, text, "ladder" if arguments.ladder else "side by side")


def contestants(job: Job, data: Data) -> dict[str, Cell]:
    model = local_model(job)
    return {
        PEER: lambda seed: peer(job, data, model, seed, tuned=False),
        TUNED: lambda seed: peer(job, data, model, seed, tuned=True),
        OURS: lambda seed: pefttool(job, data, model, seed),
    }


def take_turns(job: Job, cells: Mapping[str, Cell], rounds: int) -> dict[str, list[Measured]]:
    """Every cell once a round; the order rotates, so that none is always first."""
    found: dict[str, list[Measured]] = {name: [] for name in cells}
    names = list(cells)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            measured = cells[name](number)
            found[name].append(measured)
            said = f"{measured.speed:.0f} {job.unit}/s, {job.metric} {measured.quality:.3f}"
            print(f"{job.name}, round {number + 1}, {name}: {said}", file=sys.stderr, flush=True)
        check_equal_work(job, {name: runs[-1] for name, runs in found.items()})
    return found


def check_equal_work(job: Job, runs: Mapping[str, Measured]) -> None:
    """AssertionError unless all trained the same tokens, in steps of about the same size."""
    trained = {name: run.trained for name, run in runs.items()}
    assert len(set(trained.values())) == 1, f"{job.name}: trained units differ: {trained}"
    sizes = {name: run.tokens / run.steps for name, run in runs.items()}
    assert max(sizes.values()) <= min(sizes.values()) * (1 + STEP_TOKENS), f"{job.name}: tokens a step differ: {sizes}"


def ratios(job: Job, results: Mapping[str, Sequence[Measured]], other: str, ours: str = OURS) -> list[float]:
    """Our speed over the other's, round by round."""
    pairs = zip(results[ours], results[other], strict=True)
    return [mine.speed / its.speed for mine, its in pairs]


def table(job: Job, results: Mapping[str, Sequence[Measured]]) -> str:
    ours = results[OURS]
    lines = [
        f"### {job.title}",
        "",
        f"{ours[0].rows // job.epochs} rows, {job.epochs} epoch{'s' if job.epochs > 1 else ''}, {ours[0].steps} steps;"
        f" {ours[0].trained:,} trained {'tokens' if job.unit == 'tokens' else 'rows'} and"
        f" {' / '.join(f'{runs[0].tokens / runs[0].steps:.0f}' for runs in results.values())} tokens a step"
        f" ({' / '.join(results)}).",
        "",
        f"| | {job.unit}/s | pefttool is faster by | peak memory, MiB | first step after, s | whole run, s"
        f" | held-out {job.metric} |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        cells = [
            spread([run.speed for run in runs], "{:.0f}"),
            ""
            if name == OURS
            else f"**{spread(ratios(job, results, name), '{:.2f}')}**, target {_target(job, name):g}",
            spread([run.peak for run in runs], "{:.0f}"),
            spread([run.first_step for run in runs], "{:.1f}"),
            spread([run.wall for run in runs], "{:.1f}"),
            ", ".join(f"{run.quality:.3f}" for run in runs),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _target(job: Job, name: str) -> float:
    return job.target if name == PEER else job.tuned_target


def spread(values: Sequence[float], form: str) -> str:
    """The median, and the range where there is one."""
    median = form.format(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({form.format(min(values))} to {form.format(max(values))})"


def document(found: Mapping[str, Mapping[str, Sequence[Measured]]]) -> dict[str, Any]:
    runs = {job: {name: [m.as_json() for m in ms] for name, ms in cells.items()} for job, cells in found.items()}
    return {"command": command(), "machine": machine(), "date": time.strftime("%Y-%m-%d"), "jobs": runs}


def provenance() -> str:
    return (
        f"*Measured* with `{command()}` on {machine()}, {time.strftime('%Y-%m-%d')}, load average"
        f" {os.getloadavg()[0]:.1f} at the end."
    )


def command() -> str:
    return " ".join(["python", "benchmarks/side_by_side.py", *sys.argv[1:]])


def machine() -> str:
    import torch

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} cores ({model}), torch {torch.__version__}"


def write(path: Path, text: str, what: str) -> None:
    """Replace what stands between this table's markers in a Markdown file."""
    start, end = START.replace("made", f"{what}: made"), END.replace("end", f"end of {what}")
    before, found, rest = path.read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{path} lacks the markers {start} and {end}")
    path.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
