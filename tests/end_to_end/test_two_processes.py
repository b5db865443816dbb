"""Two processes give what one gives at the same global batch, and only rank 0 writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from real_run import CLASSIFY, ENVIRONMENT, EXACT, Finished, run
from safetensors.torch import load_file

from pefttool.config import registry as registries

#: 10 steps of 8 rows; an epoch's last step has fewer micro-batches than ranks. No dropout: each rank draws its own.
SHARED = (
    *(*CLASSIFY, *EXACT, "-o", "data.max_train_rows=68", "-o", "data.max_eval_rows=16"),
    *("-o", "train.batch_size=4", "-o", "train.max_steps=10", "-o", "train.keep_best=false"),
)


@pytest.mark.parametrize(
    "adapter",
    [pytest.param(a, marks=[] if a == "lora" else [pytest.mark.slow]) for a in registries.build().adapters],
)
def test_two_processes_equal_one(adapter: str, tmp_path: Path, no_dropout: Path) -> None:
    arguments = ("--adapter", adapter, "--model", str(no_dropout), "--data", "example:movie-snippets", *SHARED)
    one = run(tmp_path / "one", *arguments, "-o", "train.gradient_accumulation=2")
    two = tmp_path / "two"
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *("-m", "pefttool", "run", "--out", str(two), *arguments, "-o", "check=files"),
        ],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr
    finished = Finished(two, {})
    assert finished.json("environment.json")["world_size"] == 2
    assert [e["type"] for e in finished.events].count("TrainStarted") == 1
    steps = [[(e["loss"], e["grad_norm"]) for e in f.events if e["type"] == "StepDone"] for f in (one, finished)]
    assert len(steps[0]) == 10 and steps[0] == [pytest.approx(step, rel=1e-5) for step in steps[1]]
    names = sorted(p.name for p in (two / "adapter").glob("*.safetensors"))
    assert names == sorted(p.name for p in (one.folder / "adapter").glob("*.safetensors")) != []
    for name in names:
        a, b = (load_file(folder / "adapter" / name) for folder in (one.folder, two))
        assert a.keys() == b.keys()
        for key in a:
            assert torch.linalg.norm(a[key] - b[key]) <= 1e-5 * torch.linalg.norm(a[key]), (name, key)


@pytest.fixture(scope="module")
def no_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM without dropout, as a model folder."""
    import json
    import shutil

    from pefttool.config import registry

    folder = tmp_path_factory.mktemp("models") / "minilm"
    shutil.copytree(registry.build().sources["example"].model("all-minilm-l6-v2"), folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
