"""What a file is stands in its first bytes, not in its name."""

import shutil

from case_bench import Bench


def check(bench: Bench) -> None:
    for name in ("table.csv", "table.jsonl", "table.txt"):
        shutil.copy(bench.input("workbook.xlsx"), bench.folder / name)
        answer = bench.pefttool("data", "check", name)
        assert answer.code == 1
        assert f"{name}: no format recognises it: it is an Excel workbook (.xlsx): save it" in answer.text, answer.text
    answer = bench.pefttool("data", "check", "table.csv", "--format", "csv")
    assert "table.csv is no text: it is an Excel workbook (.xlsx): save it as CSV" in answer.text, answer.text
