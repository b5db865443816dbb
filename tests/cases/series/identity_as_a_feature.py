"""Numbers of patients, rows and orders, beside ages, amounts and measurements that are all different, too."""

from case_bench import Bench


def check(bench: Bench) -> None:
    rows = [
        {"pidnum": 10_000 + 7 * i, "lfd": i, "orderId": 5 * i * i + 3, "paid": 11 * i * i + 1, "weight": 50 + i / 8,
         "age": 20 + i % 50, "label": "ab"[i % 2]}
        for i in range(200)
    ]  # fmt: skip
    data = bench.write("rows.jsonl", *rows)
    answer = bench.pefttool("data", "check", data, "--task", "tabular-classification")
    assert answer.code == 0
    for name in ("pidnum", "lfd", "orderId"):
        assert f"column {name!r} has another whole number in each of" in answer.text, answer.text
        assert f"leave it out with -o task.ignore={name}" in answer.text
    for name in ("paid", "weight", "age"):
        assert f"column {name!r} has" not in answer.text, answer.text
    assert "a run would take it; 3 warnings above" in answer.text
