"""Held-out recordings that are copies of training recordings, under other names."""

import shutil

import numpy as np
import soundfile
from case_bench import Bench

RATE = 16_000


def check(bench: Bench) -> None:
    for i in range(8):
        noise = np.random.default_rng(i).normal(0, 0.1, RATE)
        soundfile.write(bench.folder / f"{i}.wav", noise, RATE)
    shutil.copy(bench.folder / "0.wav", bench.folder / "copy.wav")
    train = bench.write("train.jsonl", *[{"audio": f"{i}.wav", "text": f"word {i}"} for i in range(6)])
    held = bench.write("held.jsonl", *[{"audio": f"{name}.wav", "text": "word"} for name in ("copy", 6, 7)])
    answer = bench.pefttool("data", "check", train, "-o", f"data.eval={held}")
    assert answer.code == 0, answer.text
    assert "warning: 1 of 3 held-out rows are among the training rows too" in answer.text, answer.text
    assert "held.jsonl:1" in answer.text and "train.jsonl:1" in answer.text, answer.text
