"""In a long table, in a wide one, and in a column of a table."""

from case_bench import Bench


def check(bench: Bench) -> None:
    path = bench.folder / "a.csv"
    path.write_text("time;power\n1;3,5\n2;4,5\n3;5,5\n")
    answer = bench.pefttool("data", "check", path, "--format", "series-long")
    assert answer.code == 1 and "column 'power': found '3,5'" in answer.text, answer.text
    assert "write a decimal point in the whole column" in answer.text
    path.write_text("time;power\n1;3.5\n2;4,5\n3;5.5\n")
    answer = bench.pefttool("data", "check", path, "--format", "series-long")
    assert "a.csv:3: column 'power': found '4,5'" in answer.text and "write a decimal point" in answer.text, answer.text
    path.write_text("t1;t2\n3,5;1\n")
    answer = bench.pefttool("data", "check", path, "--format", "series-wide")
    assert "found '3,5'" in answer.text and "write a decimal point" in answer.text, answer.text
    path.write_text("age;dose;label\n" + "".join(f"{i};{i % 5},5;{i % 2}\n" for i in range(40)))
    answer = bench.pefttool("data", "check", path, "--task", "tabular-classification")
    assert answer.code == 1
    assert "column 'dose': found" in answer.text and "values with a comma" in answer.text, answer.text
    assert "write decimal points" in answer.text
