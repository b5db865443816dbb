"""A recording of 50 ms with a sentence: what is said of it, beside the arithmetic of wav2vec's convolutions."""

from itertools import pairwise

import numpy as np
import soundfile
from case_bench import Bench

TEXT = "FAR TOO MANY LETTERS FOR THIS"
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


def check(bench: Bench) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000)
    frames = 800
    for kernel, stride in zip(KERNELS, STRIDES, strict=True):
        frames = (frames - kernel) // stride + 1
    twice = sum(a == b for a, b in pairwise(TEXT))
    rows = []
    for i in range(8):
        soundfile.write(bench.folder / f"{i}.wav", noise, 16_000)
        rows.append({"audio": f"{i}.wav", "text": "YES"})
    soundfile.write(bench.folder / "short.wav", noise[:800], 16_000)
    soundfile.write(bench.folder / "held.wav", noise, 16_000)
    data = bench.write("train.jsonl", *rows, {"audio": "short.wav", "text": TEXT})
    held = bench.write("held.jsonl", {"audio": "held.wav", "text": "NO"})
    run = bench.run("--adapter", "lora", "--model", bench.model("w2v"), "--data", data, "-o", f"data.eval={held}", "-o",
                    "data.allow_overlap=true")  # fmt: skip
    (said,) = (notice for notice in run.notices if "left out: 1 of 9 training rows" in notice)
    assert f"its 0.05 s are {frames} frames, and {len(TEXT)} characters need a frame each, and {twice} for" in said, (
        said
    )
    assert "sequence_length" not in said
