"""`pefttool` as it is, which says at its end what it took: `measured.py run RECIPE --out FOLDER` writes FOLDER.cost.

A process knows its own peak of memory; of its children one only hears the largest of all. Linux counts what its parent
held when it was forked, too, in `getrusage`: not so in /proc.
"""

from __future__ import annotations

import atexit
import json
import resource
import sys
from pathlib import Path

from pefttool.cli import main


def write(path: Path) -> None:
    path.write_text(json.dumps({"peak_mib": peak_mib(), "cpu_seconds": cpu_seconds()}))


def peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    unit = 1024 if sys.platform != "darwin" else 1024 * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def cpu_seconds() -> float:
    """Of all threads, and of children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    sys.argv[0] = "pefttool"
    atexit.register(write, Path(sys.argv[sys.argv.index("--out") + 1]).with_suffix(".cost"))
    main()
