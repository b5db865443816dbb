"""A LeViT's head has a batch norm: its statistics are in the adapter's file, under peft's names."""

import json
from typing import Any

import torch
from judging import pictures, require_equal
from safetensors.torch import load_file


def check(bench: Any) -> None:
    data = pictures(bench.folder / "pictures")
    given = ("--adapter", "lora", "--model", bench.model("levit"), "--data", data, "--task", "image-classification")
    run = bench.run(*given, "-o", "dtype=float32")
    stored = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    steps = stored["base_model.model.classifier.batch_norm.num_batches_tracked"]
    assert torch.is_tensor(steps) and int(steps) > 0
    require_equal(run.after, json.loads(bench.pefttool("eval", run.folder, "--json").out))
