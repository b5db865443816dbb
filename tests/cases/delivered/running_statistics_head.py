"""What trains of a ResNet has running statistics, and they are delivered with it."""

import json
import runpy
from typing import Any

import torch
from judging import pictures, require_equal
from safetensors.torch import load_file

from pefttool.config import registry
from pefttool.export import reload


def check(bench: Any) -> None:
    data = pictures(bench.folder / "pictures")
    run = bench.run(
        *("--adapter", "head", "--model", bench.model("resnet-bn"), "--data", data, "--task", "image-classification"),
        *("-o", "adapter.train_last_layers=1", "-o", "dtype=float32", "-o", "train.max_steps=6"),
        *("-o", "train.evaluate_every=1", "-o", "train.learning_rate=0.02", "-o", "train.scheduler=constant"),
    )
    require_equal(run.after, json.loads(bench.pefttool("eval", run.folder, "--json").out))
    stored = load_file(run.folder / "adapter" / "head.safetensors")
    statistics = [name for name in stored if name.endswith("running_mean")]
    assert statistics and all(".stages.1." in name for name in statistics), "of the last block, and of no other"
    assert not [text for text in run.notices if "no file of the adapter" in text]

    plain = runpy.run_path(str(run.folder / "adapter" / "load_head.py"))["model"]
    loaded = reload.reload(run.folder, registry.build(), "cpu").model
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = loaded(pixel_values=pixels).logits
        assert torch.allclose(plain(pixel_values=pixels).logits, expected, atol=1e-6)
        assert bench.pefttool("merge", run.folder).code == 0
        merged = reload.reload(run.folder / "merged", registry.build(), "cpu").model
        assert torch.allclose(merged(pixel_values=pixels).logits, expected, atol=1e-5)
