"""A source that makes models is not asked for one while the rows are no good."""

from pathlib import Path

from case_bench import Bench


def check(bench: Bench) -> None:
    from pefttool_examples.source import ExampleSource

    asked: list[str] = []

    def made(self: ExampleSource, reference: str) -> Path:
        asked.append(reference)
        return bench.model("vit")

    bench.monkeypatch.setattr(ExampleSource, "model", made)
    words = ("run", "--adapter", "head", "--model", "example:dinov2-small", "--data", bench.input(), "--out", "run")
    answer = bench.pefttool(*words)
    assert answer.code == 1 and "8 bits a channel" in answer.text, answer.text
    assert not asked
