"""A folder of pairs, and a README: the rows and their values."""

import numpy as np
import soundfile
from case_bench import Bench

from pefttool.config import registry
from pefttool.data import rows


def check(bench: Bench) -> None:
    noise, folder = np.random.default_rng(0).normal(0, 0.1, 1600), bench.folder / "clips"
    folder.mkdir()
    for i, text in enumerate(("one two\n", "three\nfour\n", "\ufefffünf", "six\r\n")):
        soundfile.write(folder / f"{i}.wav", noise + i / 100, 16_000)
        (folder / f"{i}.txt").write_text(text, encoding="utf-8", newline="")
    (folder / "README.txt").write_text("Recorded in a kitchen.\n")
    found = rows.read(rows.files_of(folder, registry.build()).train, registry.build())
    right = ["one two", "three four", "fünf", "six"]
    assert [dict(row.values) for row in found.rows] == [
        {"audio": str(folder / f"{i}.wav"), "text": text} for i, text in enumerate(right)
    ]
    answer = bench.pefttool("data", "check", folder)
    assert answer.code == 0 and "task speech-recognition, recognised from the data" in answer.text, answer.text
