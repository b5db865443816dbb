"""The delivered model is the best evaluation's, running statistics included."""

import json
from pathlib import Path
from typing import Any

import torch
from judging import pictures, require_equal


def check(bench: Any) -> None:
    data = pictures(bench.folder / "pictures")
    run = bench.run(
        *("--adapter", "full", "--model", bench.model("resnet-bn"), "--data", data, "--task", "image-classification"),
        *("-o", "dtype=float32", "-o", "train.evaluate_every=1", "-o", "train.max_steps=12"),
        *("-o", "train.learning_rate=0.01", "-o", "train.scheduler=constant"),
    )
    assert run.json("metrics.json")["best_step"] < 12, "the best has to come before the last for this to show"
    require_equal(run.after, json.loads(bench.pefttool("eval", run.folder, "--json").out))
    assert abs(plain_loss(run.folder / "adapter", held_out(run.folder)) - run.after["loss"]) < 1e-5


def held_out(run: Path) -> list[tuple[Path, str]]:
    from pefttool.config import recipe, recipe_file, registry
    from pefttool.data import corpus

    known = registry.build()
    found = corpus.load(recipe.resolve(recipe_file.read(run / "recipe.yaml"), known), known)
    return [(Path(row.values["image"]), row.values["label"]) for row in found.eval]


def plain_loss(folder: Path, rows: list[tuple[Path, str]]) -> float:
    """Mean cross-entropy in plain transformers."""
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder)
    if (folder / "head.safetensors").is_file():
        model.load_state_dict(load_file(folder / "head.safetensors"), strict=False)
    labels = json.loads((folder / "pefttool.json").read_text())["labels"]
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor([Image.open(path).convert("RGB") for path, _ in rows], return_tensors="pt")["pixel_values"]
    wanted = torch.tensor([labels.index(label) for _, label in rows])
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(model.eval()(pixels).logits, wanted))
