import json

import projects
from case_bench import Bench
from judging import in_a_fresh_process, require_equal


def check(bench: Bench) -> None:
    run = projects.make(bench) / projects.RUN
    require_equal(json.loads((run / "metrics.json").read_text())["after"], in_a_fresh_process(run))
