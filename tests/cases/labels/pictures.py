from pathlib import Path

import torch
from case_bench import Bench
from PIL import Image
from pytest import approx
from transformers import AutoImageProcessor, AutoModelForImageClassification


def check(bench: Bench) -> None:
    for number in range(16):
        kind = ("ant", "cat", "dog", "owl")[number % 4]
        path = bench.folder / "pictures" / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (16 * number, 255 - 16 * number, 50 * (number % 4))).save(path)
    model = bench.model("resnet-animals")
    options = ("--task", "image-classification", "-o", "dtype=float32", "-o", "task.top_k=4")
    run = bench.run("--adapter", "full", "--model", model, "--data", bench.folder / "pictures", *options)
    assert "owl starts new" in run.answer.text
    for sample in run.samples:
        found = sample["before"]["scores"]
        known = sum(found[name] for name in ("ant", "cat", "dog"))
        plain = scores(model, Path(sample["row"]["image"]))
        assert {name: found[name] / known for name in plain} == approx(plain, abs=1e-5)


def scores(folder: Path, picture: Path) -> dict[str, float]:
    model, processor = (
        AutoModelForImageClassification.from_pretrained(folder),
        AutoImageProcessor.from_pretrained(folder),
    )
    with torch.no_grad():
        shares = model.eval()(**processor(Image.open(picture), return_tensors="pt")).logits[0].softmax(-1)
    return {model.config.id2label[i].lower(): float(share) for i, share in enumerate(shares)}
