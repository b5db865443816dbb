"""What fine-tuning is for: quality, time, transfer, adapters that share a base, memory and energy. One table each.

    python benchmarks/benefits.py --markdown docs/benefits.md      about 10 minutes of one core
    python benchmarks/benefits.py --jobs sentiment                 one of the tasks
    python benchmarks/benefits.py --quick                          does it run at all? its figures mean nothing

Every run is `pefttool run` in a process of its own. Energy is CPU seconds times `--watts`, an estimate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import benefit_jobs
import sharing
from benefit_jobs import JOBS, Job, Outcome

#: Of one busy core of a small machine, memory and power supply included.
WATTS = 15.0
START, END = "<!-- benefits: made by benchmarks/benefits.py -->", "<!-- end of benefits -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--watts", type=float, default=WATTS, help=f"of one busy core; default {WATTS:g}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a few rows of every job")
    parser.add_argument("--json", type=Path, default=None, help="add every measurement to what this file holds")
    parser.add_argument("--markdown", type=Path, default=None, help="replace what stands between the markers here")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    if arguments.json and arguments.json.is_file():
        found = json.loads(arguments.json.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.jobs:
            outcomes = benefit_jobs.measure(JOBS[name], Path(temporary) / name, arguments.seed, arguments.quick)
            found[name] = {way: outcome.as_json() for way, outcome in outcomes.items()}
            if name == "sentiment":
                found["transfer"] = sharing.transfer(Path(temporary), arguments.seed, arguments.quick)
                found["sharing"] = sharing.switch(Path(temporary))
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    text = page(found, arguments.watts)
    print(text)
    if arguments.markdown:
        write(arguments.markdown, text)


def page(found: dict[str, Any], watts: float) -> str:
    """All that was measured, as Markdown."""
    parts = [
        table(job, {way: Outcome(**values) for way, values in found[name].items()}, watts)
        for name, job in JOBS.items()
        if name in found
    ]
    if "transfer" in found:
        parts += [transfer_table(found["transfer"]), sharing_table(found["sharing"])]
    return "\n\n".join([*parts, provenance(watts)])


def table(job: Job, outcomes: dict[str, Outcome], watts: float) -> str:
    scratch = outcomes[benefit_jobs.SCRATCH]
    goal = scratch.best(job)
    lines = [
        f"### {job.title}",
        "",
        f"| | held-out {job.metric} | trained parameters | steps | steps to {goal:.3f} | seconds to it | CPU seconds |"
        " peak memory, MiB | saved, MiB | energy, Wh (*estimated*) |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| before: {job.before} | {outcomes[benefit_jobs.TUNED].before:.3f} | 0 | 0 | | | | | | |",
    ]
    for way, outcome in outcomes.items():
        reached = outcome.reached(job, goal)
        cells = [
            f"**{outcome.after:.3f}**" if way == benefit_jobs.TUNED else f"{outcome.after:.3f}",
            f"{outcome.trainable:,}",
            str(outcome.steps),
            "not reached" if reached is None else str(reached[0]),
            "" if reached is None else f"{reached[1]:.1f}",
            f"{outcome.cpu:.0f}",
            f"{outcome.peak:.0f}",
            f"{outcome.saved:.1f}",
            f"{outcome.cpu * watts / 3600:.2f}",
        ]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    passes = f"{scratch.epochs:g} epoch{'' if scratch.epochs == 1 else 's'}"
    return "\n".join([*lines, "", f"{scratch.rows} rows, {job.about}. {passes} each."])


def transfer_table(found: dict[str, float]) -> str:
    lines = ["### From one task to a related one", "", "| | accuracy on product reviews |", "|---|---|"]
    lines += [f"| {what} | {value:.3f} |" for what, value in found.items()]
    return "\n".join(lines)


def sharing_table(found: dict[str, Any]) -> str:
    lines = ["### Two adapters on one base", "", "| | two whole models | one base, two adapters |", "|---|---|---|"]
    lines.append(f"| weights, MiB | {found['two models MiB']:.1f} | {found['shared MiB']:.1f} |")
    lines.append(f"| on disk, MiB | {found['two models disk MiB']:.1f} | {found['shared disk MiB']:.1f} |")
    lines.append(f"| to the other task | {found['load ms']:.0f} ms: load it | {found['switch ms']:.2f} ms: switch |")
    note = f"Answers of {found['rows']} texts after switching to and fro are those of each adapter alone, bit by bit."
    return "\n".join([*lines, "", note if found["same answers"] else "**The answers differ after switching.**"])


def provenance(watts: float) -> str:
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {time.strftime('%Y-%m-%d')}"
    return (
        f"*Measured* ({machine}) with `python benchmarks/benefits.py`, one seed, job by job; energy is *estimated*: CPU"
        f" seconds times {watts:g} W, what a busy core of a small machine draws with its share of memory and power"
        " supply. Seconds to a quality are wall-clock seconds of training without evaluations, on a machine that had"
        " other work, too: they compare ways of one job, and nothing else."
    )


def write(path: Path, text: str) -> None:
    """Replace what stands between the markers. Raises SystemExit where they are missing."""
    document = path.read_text(encoding="utf-8")
    before, start, rest = document.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(f"{path} lacks the markers {START} and {END}")
    path.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
