"""Recordings of six seconds in several formats, and the first half of each file."""

import numpy as np
import soundfile
from case_bench import Bench

RATE = 16_000
KINDS = ("a.wav", "b.flac", "c.ogg", "d.mp3", "e.aiff")


def check(bench: Bench) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 6 * RATE).clip(-1, 1)
    for name in KINDS:
        soundfile.write(bench.folder / name, noise, RATE)
        whole = (bench.folder / name).read_bytes()
        (bench.folder / f"half-{name}").write_bytes(whole[: len(whole) // 2])
    piped = bytearray(
        (bench.folder / "a.wav").read_bytes()
    )  # as ffmpeg writes it to a pipe, which it cannot go back in
    piped[4:8] = piped[40:44] = b"\xff" * 4
    (bench.folder / "piped.wav").write_bytes(piped)
    rows = [{"audio": name, "text": "yes"} for name in (*KINDS, "piped.wav")]
    whole_ones = bench.pefttool("data", "check", bench.write("whole.jsonl", *rows))
    assert whole_ones.code == 0 and "nothing is wrong with it" in whole_ones.text, whole_ones.text
    halves = bench.write("halves.jsonl", *[{"audio": f"half-{name}", "text": "yes"} for name in KINDS])
    answer = bench.pefttool("data", "check", halves)
    assert answer.code == 1, answer.text
    for i, name in enumerate(KINDS, 1):
        line = next(line for line in answer.text.splitlines() if f"halves.jsonl:{i}:" in line)
        assert f"half-{name}" in line and "cannot be read to its end" in line, line
