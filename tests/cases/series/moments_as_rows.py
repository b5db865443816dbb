"""The complaint of either task about a line of a long table."""

from case_bench import Bench


def check(bench: Bench) -> None:
    path = bench.folder / "sensors.csv"
    path.write_text("machine,timestamp,power_w\nM0,2024-01-01,1\nM0,2024-01-02,2\n")
    for task in ("series-classification", "series-forecasting"):
        answer = bench.pefttool("data", "check", path, "--task", task)
        assert answer.code == 1
        assert "-o data.format=series-long (it needs a column `id` where there are several series)" in answer.text, (
            answer
        )
        assert "-o data.format=series-wide" in answer.text
