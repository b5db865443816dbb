"""Transcripts with letters and digits that a model of English capitals does not have."""

import numpy as np
import soundfile
from case_bench import Bench

RATE = 16_000


def check(bench: Bench) -> None:
    texts = ["Hello, all the others.", "Café at 25", "Über 2 is good", "plain words", *["good day"] * 8]
    for i in range(len(texts)):
        soundfile.write(bench.folder / f"{i}.wav", np.random.default_rng(i).normal(0, 0.1, 2 * RATE), RATE)
    rows = [{"audio": f"{i}.wav", "text": text} for i, text in enumerate(texts)]
    held = bench.write("held.jsonl", *rows[-2:])
    data = ("--model", bench.model("w2v"), "--data", bench.write("rows.jsonl", *rows[:-2]), "-o", f"data.eval={held}")
    run = bench.run("--adapter", "lora", *data)
    told = [notice for notice in run.notices if "no token for" in notice]
    assert len(told) == 1 and told[0].startswith("data: 2 of 10 transcripts"), run.notices
    for shown in ("'2' (2)", "'É' (1)", "'5' (1)", "'Ü' (1)"):
        assert shown in told[0], told
    # Double letters are two labels: what the first row is shown as has both. Punctuation is not heard, and not told.
    assert "«HELLO ALL THE OTHERS»" in run.answer.text, run.answer.text
