"""An adapter that goes by a number of its own (a schedule) is delivered with the one of its best evaluation."""

from pathlib import Path
from typing import Any

from judging import in_this_process, reviews

from pefttool_lora.adapter import LoraAdapter


def check(bench: Any) -> None:
    """LoRA whose scale turns after the second step."""
    save, load = LoraAdapter.save, LoraAdapter.load

    def layers(model: Any) -> list[Any]:
        return [module for module in model.modules() if hasattr(module, "lora_A")]

    def put(self: Any, model: Any, scale: float) -> None:
        for layer in layers(model):
            layer.scaling["default"] = scale

    def after_step(self: Any, model: Any, step: int) -> None:
        put(self, model, 1.0 if step <= 2 else -40.0 * step)

    def of(self: Any, model: Any) -> float:
        return float(layers(model)[0].scaling["default"])

    def saved(self: Any, model: Any, folder: Path) -> None:
        save(self, model, folder)
        (folder / "scale.txt").write_text(str(of(self, model)))

    def loaded(self: Any, model: Any, folder: Path) -> Any:
        found = load(self, model, folder)
        put(self, found, float((folder / "scale.txt").read_text()))
        return found

    for name, method in (
        *(("after_step", after_step), ("training_state", of), ("restore_training_state", put)),
        *(("save", saved), ("load", loaded)),
    ):
        bench.monkeypatch.setattr(LoraAdapter, name, method)
    run = bench.run(
        *("--adapter", "lora", "--model", bench.model("bert"), "--data", bench.write("train.jsonl", *reviews(40))),
        *("--task", "text-classification", "-o", "train.max_steps=8", "-o", "train.evaluate_every=2"),
        *("-o", "train.learning_rate=0.01", "-o", "train.scheduler=constant", "-o", "dtype=float32"),
    )
    assert run.json("metrics.json")["best_step"] < 8, [e["metrics"] for e in run.events("Evaluated")]
    assert in_this_process(bench, run) == run.after
