"""What unpacks to more than the bound is refused, having held no more than one part of it."""

import gzip

from case_bench import Bench

from pefttool.toolkit import text_files


def check(bench: Bench) -> None:
    bench.monkeypatch.setattr(text_files, "LEAST", 1 << 16)
    path = bench.folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 100_000))
    assert len(path.read_bytes()) * text_files.RATIO < 1_400_000
    answer = bench.pefttool("data", "check", path)
    assert answer.code == 1
    assert "unpacks to more than" in answer.text and "gunzip" in answer.text, answer.text
