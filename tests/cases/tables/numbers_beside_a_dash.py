"""A measurement that two thirds of the rows do not have, written as a dash; and floors of a house."""

from case_bench import Bench


def check(bench: Bench) -> None:
    def answer(name: str, values: list[object]) -> str:
        rows = [{"age": i * 7 % 50, "pay": i % 13, name: value, "label": "ny"[i % 2]} for i, value in enumerate(values)]
        path = bench.write(f"{name}.jsonl", *rows)
        return bench.pefttool("data", "check", path, "--task", "tabular-classification").text

    measured = answer("level", ["-" if i % 3 else i % 41 + 0.5 for i in range(120)])
    assert "column 'level': found '-' in" in measured and "leave it empty where it is unknown" in measured, measured
    assert "nothing is wrong with it" in answer("level", ["" if i % 3 else i % 41 + 0.5 for i in range(120)])
    assert "nothing is wrong with it" in answer("floor", ["ground" if i % 3 else i % 7 for i in range(120)])
