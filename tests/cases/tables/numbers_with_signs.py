"""Columns of numbers as people write them, and columns that only look so."""

from case_bench import Bench


def check(bench: Bench) -> None:
    kinds = {
        "percent": (lambda i: f"{i % 37}%", "17 for 17%"),
        "dollars": (lambda i: f"${i * 31 % 4000:,}.50", "1234.5 for $1,234.50"),
        "euros": (lambda i: f"{i % 50} €", "1234.5 for $1,234.50"),
        "tax": (lambda i: ("7%", "19%", "0%")[i % 3], None),
        "sizes": (lambda i: f"{i % 30}-{i % 30 + 10}", None),
        "plain": (lambda i: i % 37, None),
    }
    for name, (value, says) in kinds.items():
        rows = [{"age": i * 7 % 50, "pay": i % 13, name: value(i), "label": "ny"[i % 2]} for i in range(80)]
        answer = bench.pefttool(
            "data", "check", bench.write(f"{name}.jsonl", *rows), "--task", "tabular-classification"
        )
        assert answer.code == (0 if says is None else 1), answer.text
        assert (says or "nothing is wrong with it") in answer.text, answer.text
        assert says is None or f"column {name!r}: found" in answer.text, answer.text
