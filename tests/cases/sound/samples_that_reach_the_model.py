"""Recordings of several kinds, beside what NumPy and the model's own feature extractor make of them."""

from typing import Any

import numpy as np
import soundfile
from case_bench import Bench

RATE = 16_000


def check(bench: Bench) -> None:
    from transformers import AutoFeatureExtractor

    from pefttool_audio import ctc

    time = np.arange(RATE) / RATE
    left, right = 0.5 * np.sin(2 * np.pi * 300 * time), 0.25 * np.sin(2 * np.pi * 500 * time)
    kinds = {
        "plain.wav": (left, RATE, "PCM_16"),
        "stereo.wav": (np.stack([left, right], axis=1), RATE, "PCM_16"),
        "bits8.wav": (left, RATE, "PCM_U8"),
        "bits24.flac": (left, RATE, "PCM_24"),
        "floats.wav": (left, RATE, "FLOAT"),
        "slow.wav": (0.5 * np.sin(2 * np.pi * 300 * time[: RATE // 2] * 2), RATE // 2, "PCM_16"),
        "silence.wav": (np.zeros(RATE), RATE, "PCM_16"),
    }
    for name, (samples, rate, subtype) in kinds.items():
        soundfile.write(bench.folder / name, samples, rate, subtype=subtype)
    rows = [{"audio": name, "text": "YES"} for name in kinds]
    given: list[Any] = []
    logits = ctc._logits

    def listening(model: Any, batch: Any) -> Any:
        given.extend(zip(batch["input_values"].numpy(), batch["attention_mask"].sum(-1).tolist(), strict=True))
        return logits(model, batch)

    bench.monkeypatch.setattr(ctc, "_logits", listening)
    model = bench.model("w2v")
    bench.run("--adapter", "lora", "--model", model, "--data", bench.write("rows.jsonl", *rows), "-o", "dtype=float32")
    extract = AutoFeatureExtractor.from_pretrained(model)
    for name, (samples, _, subtype) in kinds.items():
        wanted = left if name == "slow.wav" else samples.mean(axis=1) if samples.ndim > 1 else samples
        values = extract(wanted.astype("float32"), sampling_rate=RATE)["input_values"][0]
        # 16 bits of a signal of half the scale, in units of its deviation; 8 bits are 256 times as coarse, and what is
        # resampled is not itself at its two ends.
        near = {"PCM_U8": 0.03, "PCM_16": 2e-4}.get(subtype, 1e-5)
        part = slice(200, -200) if name == "slow.wav" else slice(None)
        near = 5e-3 if name == "slow.wav" else near
        assert any(
            length == RATE and np.abs(values[part] - one[:length][part]).max() < near for one, length in given
        ), f"{name} never reached the model as it is"
