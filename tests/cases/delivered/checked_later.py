"""What the trained model answered outlives its process: a later check compares with it, and it goes once it was met."""

from pathlib import Path
from typing import Any

from judging import reviews

from pefttool_lora.adapter import LoraAdapter


def check(bench: Any) -> None:
    load = LoraAdapter.load

    def lossy(self: Any, model: Any, folder: Path) -> Any:
        loaded = load(self, model, folder)
        next(p for n, p in loaded.named_parameters() if "lora_B" in n).data.zero_()
        return loaded

    run = bench.folder / "run"
    bench.monkeypatch.setattr(LoraAdapter, "load", lossy)
    trained = bench.pefttool(
        *("run", "--out", run, "--adapter", "lora", "--model", bench.model("bert"), "--task", "text-classification"),
        *("--data", bench.write("train.jsonl", *reviews(24)), "-o", "train.max_steps=4", "-o", "check=files"),
        *("-o", "train.rehearse=false", "-o", "train.learning_rate=0.01"),
    )
    assert trained.code == 1 and "have other values than were trained" in trained.text
    for verb in ("check", "resume"):
        again = bench.pefttool(verb, run)
        assert again.code == 1 and "have other values than were trained" in again.text, (verb, again.text)
    bench.monkeypatch.setattr(LoraAdapter, "load", load)
    mended = bench.pefttool("resume", run)
    assert mended.code == 0 and "the adapter answers as the trained model did" in mended.text, mended.text
    assert not (run / ".witness").exists(), "what waited for this check is still there"
