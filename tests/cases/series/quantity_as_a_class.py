"""A time of 130 values in 400 rows; thirty-one digits with many rows each; grades."""

from collections import Counter

from case_bench import Bench


def check(bench: Bench) -> None:
    rows = [{"age": i % 40, "dose": (i * 7) % 11, "time": (i * 37) % 130, "grade": i % 5} for i in range(400)]
    data = bench.write("rows.jsonl", *rows)
    asked = ("data", "check", data, "--task", "tabular-classification", "-o")
    answer = bench.pefttool(*asked, "task.label_column=time")
    assert len(Counter(row["time"] for row in rows)) == 130
    assert answer.code == 0 and "nothing is wrong" not in answer.text, answer.text
    assert "warning: column 'time' looks like a quantity: 130 classes in" in answer.text
    assert "name the column of the class with -o task.label_column=COLUMN" in answer.text
    assert "a run would take it; 1 warning above" in answer.text
    answer = bench.pefttool(*asked, "task.label_column=grade")
    assert "looks like a quantity" not in answer.text and "nothing is wrong with it" in answer.text, answer.text
    many = bench.write("many.jsonl", *({"a": i % 3, "b": i % 7, "c": i % 31} for i in range(1300)))
    answer = bench.pefttool("data", "check", many, "--task", "tabular-classification", "-o", "task.label_column=c")
    assert "looks like a quantity" not in answer.text, answer.text
