"""A run that says of its base what an adapter answered that was only half switched off fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from judging import reviews

from pefttool_lora.adapter import LoraAdapter


def check(bench: Any) -> None:
    disabled = LoraAdapter.disabled

    @contextmanager
    def leaks(self: Any, model: Any) -> Iterator[None]:
        with disabled(self, model):
            last = [module for module in model.modules() if hasattr(module, "lora_A")][-1]
            last.enable_adapters(True)
            yield

    def train(name: str) -> Any:
        return bench.pefttool(
            *("run", "--out", bench.folder / name, "--adapter", "lora", "--model", bench.model("bert")),
            *("--data", bench.write("train.jsonl", *reviews(24)), "--task", "text-classification"),
            *("-o", "train.max_steps=4", "-o", "train.learning_rate=0.05", "-o", "train.rehearse=false"),
            *("-o", "check=files", "-o", "dtype=float32"),
        )

    sound = train("sound")
    assert sound.code == 0, sound.text
    bench.monkeypatch.setattr(LoraAdapter, "disabled", leaks)
    answer = train("leaks")
    assert answer.code == 1 and "switched off, it does not answer as its base" in answer.text, answer.text
    assert "mend its disabled()" in answer.text
