"""`result.json` of each example, and the table of all of them in docs/results.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiment import examples, load

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
BEGIN, END = "<!-- results: made by examples/run.py -->", "<!-- end of results -->"
FILE = "result.json"


def store(folder: Path, found: Mapping[str, Any]) -> None:
    """Put an experiment's result beside those of the folder's others."""
    kept = [other for other in read(folder) if other["name"] != found["name"]]
    document = {"experiments": sorted([*kept, dict(found)], key=lambda result: str(result["name"]))}
    (folder / FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> list[dict[str, Any]]:
    path = folder / FILE
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["experiments"] if path.is_file() else []
    return found


def write_page(page: Path = PAGE) -> None:
    """Replace what stands between the page's markers by the table."""
    text = page.read_text(encoding="utf-8")
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    page.write_text(f"{text[:begin]}\n{table()}\n{text[end:]}", encoding="utf-8")


def shortcomings(result: Mapping[str, Any]) -> list[str]:
    """Which baselines the tuned models do not beat by more than the spread of their seeds."""
    tuned = result["tuned"]
    spread = max(tuned["values"]) - min(tuned["values"])
    best = max if result["direction"] == "max" else min
    baselines = {
        result["base"]["what"]: best(result["base"]["values"]),
        result["trivial"]["what"]: result["trivial"]["value"],
    }
    if isinstance(result["scratch"], dict):
        baselines["the same model from scratch"] = best(result["scratch"]["values"])
    lines = []
    for name, value in baselines.items():
        ahead = tuned["median"] - value if result["direction"] == "max" else value - tuned["median"]
        if ahead <= spread:
            lines.append(f"{result['metric']} {tuned['median']:.4f} (spread {spread:.4f}) against {name}: {value:.4f}")
    return lines


def table() -> str:
    """A line for each experiment; every number is a median over its seeds, with the range where there are several."""
    lines = [
        "| example | metric | before | trivial answer | from scratch | **tuned** | beats all | CPU seconds a run"
        " | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for example in examples():
        measured = {result["name"]: result for result in read(HERE / example)}
        for experiment in load(example):
            found = measured.get(experiment.name)
            title = f"[{example}](../examples/{example}/README.md): {experiment.name}"
            title += " (*synthetic*)" if experiment.synthetic else ""
            lines.append(
                line(title, found) if found else f"| {title} | {experiment.metric} | *not measured yet* ||||||"
            )
    return "\n".join(lines)


def line(title: str, result: Mapping[str, Any]) -> str:
    scratch, seconds = result["scratch"], result["cpu_seconds_of_a_run"]
    cells = [
        title,
        f"{result['metric']}, {'higher' if result['direction'] == 'max' else 'lower'} is better",
        f"{figures(result['base'])} ({result['base']['what']})",
        f"{result['trivial']['value']:.3f} ({result['trivial']['what']})",
        figures(scratch) if isinstance(scratch, dict) else f"none: {scratch}",
        f"**{figures(result['tuned'])}**",
        "**no**" if shortcomings(result) else "yes",
        "" if seconds is None else f"{seconds:.0f}",
        f"{result['minutes']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def figures(summary: Mapping[str, Any]) -> str:
    values = summary["values"]
    text = f"{summary['median']:.3f}"
    return text if max(values) - min(values) < 5e-4 else f"{text} ({min(values):.3f} to {max(values):.3f})"
