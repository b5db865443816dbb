"""Daily values of sixty working days."""

from datetime import date, timedelta

from case_bench import Bench


def check(bench: Bench) -> None:
    days = [day for i in range(84) if (day := date(2024, 1, 1) + timedelta(days=i)).weekday() < 5]
    data = bench.folder / "prices.csv"
    data.write_text("date,price\n" + "".join(f"{day},{i % 7}.5\n" for i, day in enumerate(days)))
    words = ("--task", "series-forecasting", "--format", "series-long", "-o", "task.prediction_length=4")
    answer = bench.pefttool("data", "check", data, *words)
    assert answer.code == 0, answer.text
    assert "11 of 59 steps between time stamps are not the usual 1 d" in answer.text, answer.text
    assert "values count as evenly spaced" in answer.text and "gaps in" not in answer.text
    assert "a run would take it; 1 warning above" in answer.text
