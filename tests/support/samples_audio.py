"""Good rows of the speech tasks, with recordings: a letter of the transcript is a tone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pefttool.testing.speech_models import write_tones


def tones(text: str) -> list[float]:
    """Of letters, a scale of whole tones from A; a space is no sound."""
    return [220.0 * 2 ** ((ord(letter) - ord("a")) / 6) if letter != " " else 1.0 for letter in text.lower()]


def spoken(folder: Path) -> list[dict[str, Any]]:
    texts = ("abe", "a", "be dad")
    return [
        {"audio": write_tones(folder / f"{i}.wav", tones(text), rate=8000 * (i + 1)), "text": text}
        for i, text in enumerate(texts)
    ]
