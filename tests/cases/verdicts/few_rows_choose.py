"""Few held-out rows that choose among evaluations are told of, many are not."""

from typing import Any

from judging import reviews


def check(bench: Any) -> None:
    data = bench.write("train.jsonl", *reviews(90))
    common = ("--adapter", "head", "--model", bench.model("bert"), "--data", data, "--task", "text-classification")
    every = ("-o", "train.evaluate_every=1")
    few = bench.run(*common, *every, "-o", "data.eval_fraction=0.1")
    assert [text for text in few.notices if text.startswith("9 held-out rows choose the best of 4 evaluations")]
    for arguments in (("-o", "data.eval_fraction=0.1"), every):  # one evaluation chooses nothing; 23 rows are enough
        assert not [text for text in bench.run(*common, *arguments).notices if "held-out rows choose" in text]
