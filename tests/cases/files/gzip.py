"""JSONL, CSV and plain text that gzip packed have the rows that Python's gzip finds in them."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

from case_bench import Bench

from pefttool.config import registry
from pefttool.data import rows


def check(bench: Bench) -> None:
    right = [json.loads(line) for line in gzip.decompress(bench.input().read_bytes()).splitlines()]
    assert _rows(bench.input()) == right and len(right) == 24
    table = bench.input("separator.csv").read_bytes()
    packed = bench.folder / "table.csv.gz"
    packed.write_bytes(gzip.compress(table))
    assert _rows(packed) == list(csv.DictReader(table.decode("utf-8-sig").splitlines()[1:], delimiter=";"))
    packed = bench.folder / "words.txt.gz"
    packed.write_bytes(gzip.compress(b"one\ntwo\n\nthree\n"))
    assert _rows(packed) == [{"text": "one\ntwo"}, {"text": "three"}]
    packed.write_bytes(packed.read_bytes()[:-12])
    answer = bench.pefttool("data", "check", packed)
    assert answer.code == 1 and "words.txt.gz cannot be unpacked by gzip" in answer.text, answer.text


def _rows(path: Path) -> list[dict[str, Any]]:
    found = rows.read([path], registry.build())
    assert not found.problems
    return [dict(row.values) for row in found.rows]
