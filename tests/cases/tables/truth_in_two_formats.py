"""A model of a CSV file with `true` and `false`, asked for the same rows in CSV and in JSON."""

import json

import pytest
from case_bench import Bench


def check(bench: Bench) -> None:
    rows = [{"age": i * 7 % 50, "pay": i % 13, "flag": i % 3 == 0} for i in range(60)]
    lines = [f"{r['age']},{r['pay']},{'true' if r['flag'] else 'false'}" for r in rows]
    train, asked = bench.folder / "train.csv", bench.folder / "asked.csv"
    train.write_text("age,pay,flag,label\n" + "".join(f"{line},{'yn'[i % 3 > 0]}\n" for i, line in enumerate(lines)))
    asked.write_text("age,pay,flag\n" + "".join(f"{line}\n" for line in lines[:6]))
    words = ("--task", "tabular-classification", "--model", bench.model("bert"), "-o", "train.learning_rate=0.01")
    run = bench.run("--adapter", "head", *words, "--data", train)
    given = [asked, bench.write("asked.jsonl", *rows[:6])]
    answers = [bench.pefttool("predict", run.folder, "--data", path) for path in given]
    scores = [[json.loads(line)["scores"]["y"] for line in answer.out.splitlines()] for answer in answers]
    assert len(scores[0]) == 6 and scores[0] == pytest.approx(scores[1], abs=1e-6)
    # And it matters: the same rows without a flag have other scores.
    without = bench.write("without.jsonl", *({**row, "flag": None} for row in rows[:6]))
    other = [
        json.loads(line)["scores"]["y"]
        for line in bench.pefttool("predict", run.folder, "--data", without).out.splitlines()
    ]
    assert other != pytest.approx(scores[0], abs=1e-6)
