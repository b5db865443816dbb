"""load_head.py builds the classifier that was trained on top of a pretrained PatchTST."""

import runpy
from typing import Any

import torch
from judging import series

from pefttool.config import registry
from pefttool.export import reload


def check(bench: Any) -> None:
    data = bench.write("series.jsonl", *series())
    run = bench.run(
        *("--adapter", "head", "--model", bench.model("patchtst-classes"), "--data", data),
        *("--task", "series-classification", "-o", "dtype=float32"),
    )
    plain = runpy.run_path(str(run.folder / "adapter" / "load_head.py"))["model"]
    loaded = reload.reload(run.folder, registry.build(), "cpu").model
    values = torch.randn(3, 32, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = loaded(past_values=values).prediction_logits
        found = plain(past_values=values).prediction_logits
    assert expected.shape == (3, 2) and torch.allclose(found, expected, atol=1e-6)
