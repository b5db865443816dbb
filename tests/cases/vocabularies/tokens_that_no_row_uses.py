"""A tokenizer may know more than a model, as long as no text makes use of it."""

from __future__ import annotations

from case_bench import Bench


def check(bench: Bench) -> None:
    run = bench.run("--adapter", "lora", "--model", bench.model("base-bert-toomany"), "--data", bench.input())
    answer = bench.pefttool("predict", run.folder, "--text", "what is one?")
    assert answer.code == 0, answer.text
    for asked in (
        ("predict", run.folder, "--text", "what is <brand_new>?"),
        ("eval", run.folder, "--data", one(bench)),
    ):
        answer = bench.pefttool(*asked)
        assert answer.code == 1 and "token '<brand_new>' (id " in answer.err and "has no row" in answer.err, answer.text


def one(bench: Bench) -> str:
    return str(bench.input("one.jsonl"))
