"""Small data for runs that are judged, and what a fresh process finds of what they delivered."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: The figure of a fresh process differs by no more than that from the run's, relatively.
ROUNDING = 1e-6


def pictures(folder: Path, count: int = 32) -> Path:
    """A folder of pictures of noise in two classes, one of them a little redder."""
    import numpy as np
    from PIL import Image

    draws = np.random.default_rng(0)
    for i in range(count):
        kind = ("blue", "red")[i % 2]
        values = draws.integers(0, 200, (32, 32, 3))
        values[..., 0 if kind == "red" else 2] += 25
        path = folder / kind / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype("uint8")).save(path)
    return folder


def reviews(count: int = 60, good: float = 0.5) -> list[dict[str, Any]]:
    """Rows of words in two classes that words do not tell apart; a share of them is `good`."""
    draws, words = random.Random(3), ["gem", "warm", "dull", "slow", "film", "plot", "great", "thin", "long", "funny"]
    return [
        {"text": " ".join(draws.choices(words, k=3 + i % 9)), "label": "good" if draws.random() < good else "bad"}
        for i in range(count)
    ]


def series(count: int = 40) -> list[dict[str, Any]]:
    """Waves of two speeds under noise."""
    import numpy as np

    draws, rows = np.random.default_rng(0), []
    for i in range(count):
        fast = i % 2
        times = np.arange(32) / (3 + fast) + draws.uniform(0, 6)
        values = (1 + fast) * np.sin(times) + 0.8 * draws.standard_normal(32)
        rows.append({"series": [[round(float(v), 4) for v in values]], "label": ("slow", "fast")[fast]})
    return rows


def in_a_fresh_process(run: Path) -> dict[str, float]:
    """What `pefttool eval` finds of the run's own held-out rows."""
    import torch

    command = [sys.executable, "-m", "pefttool", "eval", str(run), "--json"]
    alike = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums are split by threads
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=alike)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def require_equal(judged: Mapping[str, float], found: Mapping[str, Any]) -> None:
    """Every figure of the run is the other's, to rounding."""
    for name, value in judged.items():
        apart = abs(found[name] - value)
        assert apart <= ROUNDING * max(1.0, abs(value)), f"{name}: {value} judged, {found[name]} found"


def in_this_process(bench: Any, run: Any) -> dict[str, float]:
    """What `pefttool eval` finds of a run's own held-out rows."""
    answer = bench.pefttool("eval", run.folder, "--json")
    assert answer.code == 0, answer.text
    found = json.loads(answer.out)
    return {name: found[name] for name in run.after}
