"""A system message that is longer than the run's sequences cannot be in what the model is asked with."""

import io

from case_bench import Bench


def check(bench: Bench) -> None:
    run = bench.run(
        *("--adapter", "lora", "--model", bench.model("chatml"), "--data", bench.input()),
        *("-o", "train.sequence_length=48"),
    )
    for system, cut in (("be brief. " * 30, True), ("be brief", False)):
        bench.monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\n"))
        answer = bench.pefttool("chat", run.folder, "--system", system, "-o", "generation.max_new_tokens=2")
        assert answer.code == 0, answer.text
        assert ("1 of 1 inputs were cut to 48 tokens" in answer.err) == cut, answer.err
