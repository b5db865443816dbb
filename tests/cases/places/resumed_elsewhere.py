import json
import shutil

import projects
from case_bench import Bench


def check(bench: Bench) -> None:
    run = projects.make(bench, "-o", "train.checkpoint_every=2") / projects.RUN
    weights = run / "adapter" / "adapter_model.safetensors"
    adapter, metrics = weights.read_bytes(), json.loads((run / "metrics.json").read_text())
    shutil.rmtree(run / "checkpoints" / "step-4")
    shutil.rmtree(run / "adapter")
    (run / "metrics.json").unlink()
    answer = bench.pefttool("resume", run)
    assert answer.code == 0, answer.text
    assert weights.read_bytes() == adapter
    assert json.loads((run / "metrics.json").read_text()) == metrics
