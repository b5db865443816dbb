"""An adapter with a format of its own that loses one tensor on the way there."""

import tempfile
from pathlib import Path
from typing import Any

from judging import reviews

from pefttool.toolkit import peft_folder
from pefttool_lora.adapter import LoraAdapter

OWN, CONFIG = "own.safetensors", "own.json"


def check(bench: Any) -> None:
    data = bench.write("train.jsonl", *reviews(24))
    save, load = LoraAdapter.save, LoraAdapter.load

    def saves(lost: str) -> Any:
        def own(self: Any, model: Any, folder: Path) -> None:
            save(self, model, folder)
            (folder / peft_folder.CONFIG).rename(folder / CONFIG)
            tensors = peft_folder.read_tensors(folder / peft_folder.WEIGHTS)
            (folder / peft_folder.WEIGHTS).unlink()
            doubled = {f"twice {n}": t * 0 if lost and lost in n else t * 2 for n, t in tensors.items()}
            peft_folder.write_tensors(folder / OWN, doubled)

        return own

    def loads(self: Any, model: Any, folder: Path) -> Any:
        with tempfile.TemporaryDirectory() as usual:
            (Path(usual) / peft_folder.CONFIG).write_bytes((folder / CONFIG).read_bytes())
            tensors = peft_folder.read_tensors(folder / OWN)
            halves = {n.removeprefix("twice "): t / 2 for n, t in tensors.items()}
            peft_folder.write_tensors(Path(usual) / peft_folder.WEIGHTS, halves)
            return load(self, model, Path(usual))

    bench.monkeypatch.setattr(LoraAdapter, "load", loads)
    for lost, code in (("layer.0.output.dense.lora_B", 1), ("", 0)):
        bench.monkeypatch.setattr(LoraAdapter, "save", saves(lost))
        answer = bench.pefttool(
            *("run", "--out", bench.folder / f"run-{code}", "--adapter", "lora", "--data", data),
            *("--model", bench.model("bert"), "--task", "text-classification", "-o", "check=files"),
            *("-o", "train.max_steps=4", "-o", "train.evaluate_every=4", "-o", "train.rehearse=false"),
        )
        assert answer.code == code, answer.text
        assert ("trained tensors have other values than were trained" in answer.text) == bool(lost), answer.text
