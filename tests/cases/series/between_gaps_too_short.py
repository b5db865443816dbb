"""Forty values in stretches of ten: a past and a future of eight do not fit into one."""

from case_bench import Bench


def check(bench: Bench) -> None:
    times = [i + 100 * (i // 10) for i in range(40)]
    row = {"series": [[float(i % 3) for i in range(40)]], "timestamps": times}
    data = bench.write("rows.jsonl", row)
    asked = ("--task", "series-forecasting", "-o", "task.prediction_length=8")
    answer = bench.pefttool("data", "check", data, *asked)
    assert answer.code == 1
    assert "found 3 gaps, and at most 10 values between two, expected at least 16 to forecast 8" in answer.text, (
        answer.text
    )
    assert "lower task.prediction_length" in answer.text and "-o task.gaps=join" in answer.text
    assert bench.pefttool("data", "check", data, *asked, "-o", "task.gaps=join").code == 0
    lost = bench.write("lost.jsonl", {**row, "timestamps": times[:-1]})
    answer = bench.pefttool("data", "check", lost, *asked)
    assert "column 'timestamps': found 39 times, expected 40, one for each value" in answer.text, answer.text
