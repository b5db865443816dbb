"""`pefttool` as it is, which says at its end how much memory it had: `measured.py run RECIPE --out FOLDER`.

A process knows its own peak; of its children one only hears the largest of all. Linux counts what its parent held when
it was forked, too, in `getrusage`: not so in /proc.
"""

from __future__ import annotations

import atexit
import json
import resource
import sys
from pathlib import Path

from pefttool.cli import main


def write(path: Path) -> None:
    path.write_text(json.dumps(peak_mib()))


def peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    unit = 1024 if sys.platform != "darwin" else 1024 * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    sys.argv[0] = "pefttool"
    atexit.register(write, Path(sys.argv[sys.argv.index("--out") + 1]).with_suffix(".peak"))
    main()
