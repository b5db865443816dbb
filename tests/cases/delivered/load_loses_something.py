"""A run whose adapter is another one when it is loaded again fails, with either check."""

from pathlib import Path
from typing import Any

from judging import reviews

from pefttool_lora.adapter import LoraAdapter


def check(bench: Any) -> None:
    data = bench.write("train.jsonl", *reviews(24))
    load = LoraAdapter.load

    def loses(which: str) -> Any:
        def lossy(self: Any, model: Any, folder: Path, name: str = "default") -> Any:
            loaded = load(self, model, folder, name)
            for parameter_name, parameter in loaded.named_parameters():
                if "lora_B" in parameter_name and which in parameter_name:
                    parameter.data.zero_()
            return loaded

        return lossy

    def train(check: str, dtype: str) -> Any:
        return bench.pefttool(
            *("run", "--out", bench.folder / f"{check}-{dtype}-{len(tried)}", "--adapter", "lora", "--data", data),
            *("--model", bench.model("bert"), "--task", "text-classification", "-o", f"check={check}"),
            *("-o", f"dtype={dtype}", "-o", "train.max_steps=6", "-o", "train.rehearse=false"),
        )

    tried: list[str] = []
    for which in ("", "layer.1.attention.self.query"):  # all of them, and one
        bench.monkeypatch.setattr(LoraAdapter, "load", loses(which))
        for how, dtype in (("files", "float32"), ("files", "bfloat16"), ("process", "bfloat16")):
            answer = train(how, dtype)
            tried.append(which)
            assert answer.code == 1 and "does not answer as the trained model did" in answer.text, answer.text
            assert "checked:" not in answer.out
    bench.monkeypatch.setattr(LoraAdapter, "load", load)
    sound = train("files", "bfloat16")
    assert sound.code == 0 and "answers as the trained model did (difference 0 of" in sound.out, sound.text
