import shutil

import projects
from case_bench import Bench


def check(bench: Bench) -> None:
    project = projects.make(bench)
    copy = bench.folder / "archive" / "copy"
    shutil.copytree(project, copy)
    shutil.rmtree(project)
    answer = bench.pefttool("eval", copy / projects.RUN)
    assert answer.code == 0, answer.text
    again = bench.pefttool("run", copy / projects.RUN / "recipe.yaml", "--out", "again", "-o", "check=none")
    assert again.code == 0 and str(copy / "tickets.csv") in (bench.folder / "elsewhere/again/recipe.yaml").read_text()
    (copy / "tickets.csv").unlink()
    answer = bench.pefttool("eval", copy / projects.RUN)
    assert answer.code == 1 and f"{project / 'tickets.csv'}" in answer.text, answer.text
