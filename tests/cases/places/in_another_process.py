import json
import subprocess
import sys

import projects
from case_bench import Bench


def check(bench: Bench) -> None:
    run = projects.make(bench) / projects.RUN
    done = subprocess.run(
        [sys.executable, "-m", "pefttool", "eval", str(run), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    accuracy = json.loads((run / "metrics.json").read_text())["after"]["accuracy"]
    assert json.loads(done.stdout)["accuracy"] == accuracy
