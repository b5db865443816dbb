"""SECURITY.md names tests: they are there, and every file of tests about trust is named."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def names(path: Path) -> set[str]:
    """What a module defines at its top."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return found


def test_every_promise_names_a_test_that_exists() -> None:
    table = PAGE.partition("| promise | test |")[2].splitlines()[2:]
    rows = [line for line in table if line.startswith("|")]
    assert len(rows) == len(NAMED) > 12
    for file, name in NAMED:
        assert (ROOT / file).is_file(), file
        assert name in names(ROOT / file), f"{file} has no {name}"


def test_every_file_about_trust_is_named() -> None:
    files = {f"tests/trust/{path.name}" for path in (ROOT / "tests" / "trust").glob("test_*.py")}
    files -= {f"tests/trust/{Path(__file__).name}"}
    assert files <= {file for file, _ in NAMED}


def test_it_says_what_the_field_expects_of_such_a_page() -> None:
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert {"Supported versions", "How to report", "What is trusted", "What is not trusted"} <= set(headings)
    assert "Plugins are code" in PAGE and "@" not in PAGE.replace("REPO@REVISION", "")  # no address is made up
