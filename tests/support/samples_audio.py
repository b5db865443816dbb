"""Good rows of the speech tasks, with recordings: a letter of the transcript is a tone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

RATE = 16_000


def tones(text: str) -> list[float]:
    """Of letters, a scale of whole tones from A; a space is no sound."""
    return [220.0 * 2 ** ((ord(letter) - ord("a")) / 6) if letter != " " else 1.0 for letter in text.lower()]


def spoken(folder: Path) -> list[dict[str, Any]]:
    texts = ("abe", "a", "be dad")
    return [
        {"audio": write_tones(folder / f"{i}.wav", tones(text), rate=8000 * (i + 1)), "text": text}
        for i, text in enumerate(texts)
    ]


def recordings(path: Path) -> list[dict[str, Any]]:
    """What the format `recordings` makes of one."""
    return [{"audio": str(path), "label": path.parent.name}]


def transcripts(path: Path) -> list[dict[str, Any]]:
    """What the format `transcripts` makes of the file that `write_formats` writes."""
    beside = path.parent / "a.flac"
    return [{"audio": str(beside), "text": "GO DO YOU HEAR"}, {"audio": str(beside), "text": "ÄRGER"}]


def spoken_text(path: Path) -> list[dict[str, Any]]:
    """What the format `spoken-text` makes of the file that `write_formats` writes."""
    return [{"audio": str(path.with_suffix(".wav")), "text": "GO ÄRGER"}]


def write_formats(recording: Path, transcript: Path, text: Path) -> None:
    """A recording, a transcript beside it that names it twice, and a text with a recording of its own."""
    write_tones(text.with_suffix(".wav"), [440.0])
    text.write_text("GO\nÄRGER\n", encoding="utf-8")
    write_tones(recording, [440.0, 220.0])
    transcript.write_text("a GO DO YOU HEAR\n\na ÄRGER\n", encoding="utf-8")


def write_tones(path: Path, notes: Sequence[float], rate: int = RATE, seconds: float = 0.1) -> str:
    """A recording of pure tones (Hz), one after another; its absolute path."""
    import numpy as np
    import soundfile

    time = np.arange(round(seconds * rate)) / rate
    wave = [0.3 * np.sin(2 * np.pi * note * time) * np.hanning(len(time)) for note in notes]
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.concatenate(wave), rate)
    return str(path.absolute())
