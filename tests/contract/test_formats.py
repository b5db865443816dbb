"""Every registered format keeps its contract."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from samples_recsys import LOG, LOGGED

from pefttool import registry as registries
from pefttool.testing import check_format

REGISTRY = registries.build()
ROWS = [{"text": "one", "label": "1"}, {"text": "two, and\nmore", "label": "0"}, {"text": "drei: äöü", "label": "1"}]


class Sample(NamedTuple):
    """`lines` are where the rows start; for JSON and Parquet they are the rows' numbers."""

    file: str
    rows: list[dict[str, Any]]
    lines: list[int]


#: A file of every format, as `files` writes it: a new format adds a line here, and a few below.
SAMPLES = {
    "csv": Sample("a.csv", ROWS, [2, 3, 5]),
    "interactions": Sample("a.inter", LOGGED, [2, 3]),
    "json": Sample("a.json", ROWS, [1, 2, 3]),
    "jsonl": Sample("a.jsonl", ROWS, [1, 2, 3]),
    "parquet": Sample("a.parquet", ROWS, [1, 2, 3]),
    "text": Sample("a.txt", [{"text": row["text"]} for row in ROWS], [1, 3, 6]),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import datasets

    folder = tmp_path_factory.mktemp("formats")
    found = {name: folder / sample.file for name, sample in SAMPLES.items()}
    with found["csv"].open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["text", "label"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(ROWS)
    found["json"].write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    found["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    datasets.Dataset.from_list(ROWS).to_parquet(found["parquet"])
    found["text"].write_text("\n\n".join(row["text"] for row in ROWS), encoding="utf-8")
    found["interactions"].write_text(LOG, encoding="utf-8")
    return found


def test_no_format_is_left_out() -> None:
    assert set(REGISTRY.formats) == set(SAMPLES)


@pytest.mark.parametrize("name", REGISTRY.formats)
def test_contract(name: str, files: dict[str, Path]) -> None:
    others = [path for other, path in files.items() if other != name]
    check_format(REGISTRY.formats[name], files[name], SAMPLES[name].rows, SAMPLES[name].lines, others)
