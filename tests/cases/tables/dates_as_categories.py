"""Sixty days of sales, in three ways of writing a day; months by their names are categories."""

from datetime import date, timedelta

from case_bench import Bench


def check(bench: Bench) -> None:
    days = [date(2024, 1, 1) + timedelta(days=i % 60) for i in range(120)]
    for written, told in (("%Y-%m-%d", True), ("%d.%m.%Y", True), ("%m/%d/%y 12:00", True), ("%b", False)):
        rows = [
            {"age": i * 7 % 50, "pay": i % 13, "sold": f"{day:{written}}", "label": "ny"[i % 2]}
            for i, day in enumerate(days)
        ]
        answer = bench.pefttool("data", "check", bench.write("rows.jsonl", *rows), "--task", "tabular-classification")
        assert answer.code == 0, answer.text
        assert ("warning: column 'sold' holds dates such as" in answer.text) is told, answer.text
        assert ("-o task.ignore=sold" in answer.text) is told, answer.text
