"""A recording whose text is missing, a text whose recording is, and an empty text: each is told."""

import numpy as np
import soundfile
from case_bench import Bench


def check(bench: Bench) -> None:
    noise, folder = np.random.default_rng(0).normal(0, 0.1, 1600), bench.folder / "clips"
    folder.mkdir()
    for i in range(8):
        soundfile.write(folder / f"{i}.wav", noise + i / 100, 16_000)
        (folder / f"{i}.txt").write_text(f"word {i}\n" if i else "")
    soundfile.write(folder / "alone.wav", noise, 16_000)
    (folder / "notes.txt").write_text("a text without a recording\n")
    answer = bench.pefttool("data", "check", folder)
    assert answer.code == 1 and "task speech-recognition" in answer.text, answer.text
    assert "0.wav and 1 more: left out, as no row names them" in answer.text  # alone.wav is the other
    assert "0.txt and 7 more: spoken-text (beside a recording of the same name)" in answer.text
    assert "0.txt:1: the file is empty, expected what is said in 0.wav" in answer.text
    assert "notes.txt:1: found columns 'text', expected one of 'audio'" in answer.text
