"""No row has a frame for each of its letters; in another file no letter is one of the model's."""

import numpy as np
import soundfile
from case_bench import Bench


def check(bench: Bench) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 800)
    for i in range(4):
        soundfile.write(bench.folder / f"{i}.wav", noise + i / 100, 16_000)
    short = bench.write("short.jsonl", *({"audio": f"{i}.wav", "text": "HELLO"} for i in range(4)))
    other = bench.write("other.jsonl", *({"audio": f"{i}.wav", "text": "+++"} for i in range(4)))
    for data, why in (
        (short, "its 0.05 s are 2 frames, and 5 characters need a frame each, and 1 for the blanks between equal ones"),
        (other, "the model has no token for any character of its transcript"),
    ):
        words = ("--adapter", "lora", "--model", bench.model("w2v"), "--data", data, "--out", "run")
        answer = bench.pefttool("run", *words, "-o", "data.eval_fraction=0.25")
        assert answer.code == 1
        assert "has a trained token" in answer.text and why in answer.text, answer.text
        assert "sequence_length" not in answer.text
