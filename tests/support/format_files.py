"""A good file of every registered format. A new format adds a line to SAMPLES, and a few below."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import samples_audio
import samples_series
import samples_text
import samples_vision
from samples_recsys import LOG, LOGGED

ROWS = [{"text": "one", "label": "1"}, {"text": "two, and\nmore", "label": "0"}, {"text": "drei: äöü", "label": "1"}]


PAIRS = [{"translation": {"en": "one", "es": "uno"}}, {"translation": {"en": "two", "es": "dos y más"}}]


class Sample(NamedTuple):
    """`lines` are where the rows start; for JSON and Parquet they are the rows' numbers.

    `rows` are those of the file, or a function of its path (of formats whose rows name files).
    """

    file: str
    rows: list[dict[str, Any]] | Callable[[Path], list[dict[str, Any]]]
    lines: list[int]

    def expected(self, path: Path) -> list[dict[str, Any]]:
        return self.rows(path) if callable(self.rows) else self.rows


#: A file of every format, as `write` writes it.
SAMPLES = {
    "coco": Sample("coco.json", samples_vision.coco_file, [1, 2]),
    "conll": Sample("a.conll", samples_text.SENTENCES, [3, 6]),
    "csv": Sample("a.csv", ROWS, [2, 3, 5]),
    "interactions": Sample("a.inter", LOGGED, [2, 3]),
    "images": Sample("a.png", samples_vision.picture, [1]),
    "json": Sample("a.json", ROWS, [1, 2, 3]),
    "jsonl": Sample("a.jsonl", ROWS, [1, 2, 3]),
    "parallel-text": Sample("pair.en", PAIRS, [1, 2]),
    "parquet": Sample("a.parquet", ROWS, [1, 2, 3]),
    "squad": Sample("squad.json", samples_text.SQUAD_ROWS, [1, 2, 3]),
    "recordings": Sample("a.flac", samples_audio.recordings, [1]),
    "text": Sample("words.txt", [{"text": row["text"]} for row in ROWS], [1, 3, 6]),
    "spoken-text": Sample("clip.txt", samples_audio.spoken_text, [1]),
    "transcripts": Sample("1-2.trans.txt", samples_audio.transcripts, [1, 3]),
    "series-long": Sample("long.csv", *samples_series.LONG),
    "series-wide": Sample("wide.csv", *samples_series.WIDE),
    "ts": Sample("a.ts", *samples_series.TS),
}


def write(folder: Path) -> dict[str, Path]:
    """Write them all into `folder`; their paths, by format."""
    import datasets

    found = {name: folder / sample.file for name, sample in SAMPLES.items()}
    with found["csv"].open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["text", "label"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(ROWS)
    found["json"].write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    found["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    datasets.Dataset.from_list(ROWS).to_parquet(found["parquet"])
    found["text"].write_text("\n\n".join(row["text"] for row in ROWS), encoding="utf-8")
    for language in ("en", "es"):
        lines = "".join(f"{row['translation'][language]}\n" for row in PAIRS)
        found["parallel-text"].with_suffix(f".{language}").write_text(lines, encoding="utf-8")
    samples_vision.coco_file(found["coco"])
    samples_vision.drawn(found["images"], "red")
    found["conll"].write_text(samples_text.CONLL, encoding="utf-8")
    found["squad"].write_text(json.dumps(samples_text.SQUAD), encoding="utf-8")
    samples_audio.write_formats(found["recordings"], found["transcripts"], found["spoken-text"])
    for name, text in samples_series.FILES.items():
        found[name].write_text(text, encoding="utf-8")
    found["interactions"].write_text(LOG, encoding="utf-8")
    return found
