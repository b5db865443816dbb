"""What an adapter trained on films says of products, and two adapters that share one base."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import benefit_jobs
from benefit_jobs import JOBS, TUNED

PRODUCTS = "example:product-snippets"
FILMS = "trained on films, no product review seen"
BOTH = "trained on product reviews themselves"
SWITCHES = 50


def transfer(folder: Path, seed: int, quick: bool) -> dict[str, float]:
    """Accuracies on held-out product reviews. The run on films is the benchmark's own; one on products is made."""
    from pefttool.config import recipe, registry
    from pefttool.data import corpus, recognition
    from pefttool.data.batches import by_length
    from pefttool.data.encoding import encode
    from pefttool.export.reload import reload
    from pefttool.inference import evaluate

    job, films = JOBS["sentiment"], folder / "sentiment" / TUNED
    changes = {**(job.quick if quick else {}), "data.train": PRODUCTS, "train.seed": seed}
    document = benefit_jobs.changed(job.recipe, changes)
    own = benefit_jobs.run(document, folder / "products", job.metric)
    known = registry.build()
    resolved, _ = recognition.recognise_task(recipe.resolve(document, known), known)
    rows = corpus.load(resolved, known).eval
    loaded = reload(films, known)
    encoded = encode(rows, loaded.task, loaded.processor, loaded.setting)
    batches = by_length([int(e["length"]) for e in encoded.examples], 32)
    metrics, _ = evaluate.evaluate(loaded, encoded, batches)
    labels = [row.values["label"] for row in rows]
    majority = max(labels.count(label) for label in set(labels)) / len(labels)
    return {"the majority's label": majority, FILMS: metrics["accuracy"], BOTH: own.after}


def switch(folder: Path) -> dict[str, Any]:
    """Both adapters on one base through plain peft: weights held, time of a switch, and that answers stay their own."""
    import peft
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    adapters = {"films": folder / "sentiment" / TUNED / "adapter", "products": folder / "products" / "adapter"}
    described = json.loads((adapters["films"] / "pefttool.json").read_text(encoding="utf-8"))
    base = described["base"]["path"]
    texts = ["a gem of a film", "two hours I will never get back", "it broke after a week", "works as it should"]
    inputs = AutoTokenizer.from_pretrained(base)(texts, padding=True, return_tensors="pt")

    def load() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32).eval()

    def answers(model: Any) -> Any:
        with torch.no_grad():
            return model(**inputs).logits

    alone, sizes, seconds = {}, [], []
    for name, path in adapters.items():
        began = time.perf_counter()
        model = peft.PeftModel.from_pretrained(load(), str(path)).eval()
        seconds.append(time.perf_counter() - began)
        alone[name] = answers(model)
        sizes.append(_mib(model.merge_and_unload()))
    shared = peft.PeftModel.from_pretrained(load(), str(adapters["films"]), adapter_name="films").eval()
    shared.load_adapter(str(adapters["products"]), adapter_name="products")
    times, same = [], True
    for i in range(SWITCHES):
        name = ("films", "products")[i % 2]
        began = time.perf_counter()
        shared.set_adapter(name)
        times.append(time.perf_counter() - began)
        same = same and bool(answers(shared.eval()).equal(alone[name])) if i < 4 else same
    disk = [sum(f.stat().st_size for f in path.glob("*.safetensors")) / (1 << 20) for path in adapters.values()]
    whole = sum(f.stat().st_size for f in Path(base).glob("*.safetensors")) / (1 << 20)
    return {
        "two models MiB": sum(sizes),
        "shared MiB": _mib(shared),
        "two models disk MiB": 2 * whole,
        "shared disk MiB": whole + sum(disk),
        "load ms": 1000 * statistics.median(seconds),
        "switch ms": 1000 * statistics.median(times),
        "same answers": same,
        "rows": len(texts),
    }


def _mib(model: Any) -> float:
    held = {p.data_ptr(): p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers())}
    return sum(held.values()) / (1 << 20)
