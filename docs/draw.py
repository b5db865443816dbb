"""Draws docs/architecture.svg from the imports of `pefttool/`: the folders, floor by floor, and who uses whom."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path

CORE = Path(__file__).parents[1] / "pefttool"
#: Pixels: of a floor, a box, around everything and between boxes, of the page, and of its part with the boxes.
FLOOR, HEIGHT, MARGIN, GAP, WIDTH, BOXES = 88, 44, 24, 40, 1120, 400
STYLE = """
rect.page { fill: #ffffff } rect.box { fill: #eef3fb; stroke: #4a6fa5 } path { stroke: #8a97a8; fill: none }
text { font: 14px sans-serif; fill: #1d2733 } text.count { font-size: 11px; fill: #5b6673 }
text.floor { font-size: 11px; fill: #8a97a8 } text.about { font-size: 12px }
"""


def uses(root: Path = CORE) -> dict[str, set[str]]:
    """Folder, or module beside the folders -> those that it imports, lazily and for type checkers too."""
    names = {path.name for path in root.iterdir() if (path / "__init__.py").is_file()} | {"run", "__main__"}
    found: dict[str, set[str]] = {name: set() for name in names}
    for path in sorted(root.rglob("*.py")):
        own = path.relative_to(root).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if own in names and isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pefttool":
                parts = str(node.module).split(".")
                found[own].update(parts[1:2] or (alias.name for alias in node.names))
    return {name: (used & names) - {name} for name, used in found.items()}


def needed(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that no longer way implies."""

    @cache
    def below(name: str) -> frozenset[str]:
        return frozenset(graph[name]).union(*(below(other) for other in graph[name]))

    return {name: {u for u in used if not any(u in below(v) for v in used - {u})} for name, used in graph.items()}


def floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Everything stands one floor above the highest that it uses."""

    @cache
    def floor(name: str) -> int:
        return 1 + max((floor(other) for other in graph[name]), default=0)

    return {name: floor(name) for name in graph}


def count(name: str) -> str:
    """What stands under a folder's name."""
    files = [path for path in (CORE / name).glob("*.py") if path.name != "__init__.py"]
    return f"{len(files)} files" if files else "one file"


def about(name: str) -> str:
    """What a folder, or a module, says that it is: the first sentence of its docstring."""
    path = CORE / name / "__init__.py" if (CORE / name).is_dir() else CORE / f"{name}.py"
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return said.split(". ")[0].splitlines()[0].rstrip(".")


def svg() -> str:
    """The picture."""
    graph = uses()
    at, top = floors(graph), max(floors(graph).values())
    places: dict[str, tuple[float, float, float]] = {}
    for level in range(1, top + 1):
        names = sorted(name for name in graph if at[name] == level)
        widths = [11 * len(name) + 40 for name in names]
        x = (BOXES - sum(widths) - GAP * (len(names) - 1)) / 2
        for name, width in zip(names, widths, strict=True):
            places[name] = (x, MARGIN + (top - level) * FLOOR, width)
            x += width + GAP
    size = (WIDTH, 2 * MARGIN + (top - 1) * FLOOR + HEIGHT)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}">', f"<style>{STYLE}</style>"]
    parts.append(f'<rect class="page" width="{size[0]}" height="{size[1]}"/>')
    for name, used in sorted(needed(graph).items()):
        for other in sorted(used):
            (x, y, w), (u, v, z) = places[name], places[other]
            start, end = (x + w / 2, y + HEIGHT), (u + z / 2, v)
            bend = (end[1] - start[1]) / 2
            parts.append(
                f'<path d="M {start[0]:.0f} {start[1]} C {start[0]:.0f} {start[1] + bend:.0f},'
                f' {end[0]:.0f} {end[1] - bend:.0f}, {end[0]:.0f} {end[1]}"/>'
            )
    for name, (x, y, w) in sorted(places.items()):
        parts.append(f'<rect class="box" x="{x:.0f}" y="{y}" width="{w}" height="{HEIGHT}" rx="6"/>')
        for text, kind, line in ((name, "name", 19), (count(name), "count", 35)):
            parts.append(
                f'<text class="{kind}" x="{x + w / 2:.0f}" y="{y + line}" text-anchor="middle">{escape(text)}</text>'
            )
    for level in range(1, top + 1):
        y = MARGIN + (top - level) * FLOOR + HEIGHT / 2
        parts.append(f'<text class="floor" x="8" y="{y + 4:.0f}">{level}</text>')
        names = sorted(name for name in graph if at[name] == level)
        for i, name in enumerate(names):
            line = y + 4 + 18 * (i - (len(names) - 1) / 2)
            text = escape(f"{name}: {about(name)}")
            parts.append(f'<text class="about" x="{BOXES + GAP}" y="{line:.0f}">{text}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
