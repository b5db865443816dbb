"""A run whose adapter is another one when it is loaded again fails, with either check."""

from pathlib import Path
from typing import Any

from judging import reviews

from pefttool_lora.adapter import LoraAdapter


def check(bench: Any) -> None:
    data = bench.write("train.jsonl", *reviews(24))
    load = LoraAdapter.load

    def loses(which: str) -> Any:
        def lossy(self: Any, model: Any, folder: Path) -> Any:
            loaded = load(self, model, folder)
            for parameter_name, parameter in loaded.named_parameters():
                if "lora_B" in parameter_name and which in parameter_name:
                    parameter.data.zero_()
            return loaded

        return lossy

    def train(name: str, check: str) -> Any:
        return bench.pefttool(
            *("run", "--out", bench.folder / name, "--adapter", "lora", "--data", data, "-o", "dtype=bfloat16"),
            *("--model", bench.model("bert"), "--task", "text-classification", "-o", f"check={check}"),
            *("-o", "train.max_steps=4", "-o", "train.evaluate_every=4", "-o", "train.rehearse=false"),
        )

    for name, which, how in (("all", "", "process"), ("one", "layer.1.attention.self.query", "files")):
        bench.monkeypatch.setattr(LoraAdapter, "load", loses(which))
        answer = train(name, how)
        assert answer.code == 1 and "have other values than were trained" in answer.text, answer.text
        assert "checked:" not in answer.out
    bench.monkeypatch.setattr(LoraAdapter, "load", load)
    sound = train("sound", "files")
    assert sound.code == 0 and "answers as the trained model did (difference 0 of" in sound.out, sound.text
