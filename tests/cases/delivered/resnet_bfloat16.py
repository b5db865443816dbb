"""A run in bfloat16 trains batch norms in float32, and delivers what it judged."""

import json
from typing import Any

from judging import pictures, require_equal


def check(bench: Any) -> None:
    data = pictures(bench.folder / "pictures")
    run = bench.run(
        *("--adapter", "full", "--model", bench.model("resnet-bn"), "--data", data, "--task", "image-classification"),
        *("-o", "dtype=bfloat16", "-o", "train.evaluate_every=1"),
    )
    answer = bench.pefttool("eval", run.folder, "--json")
    require_equal(run.after, json.loads(answer.out))
