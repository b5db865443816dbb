"""The reference pages are what the code says, and every hook has a test of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from generated import generate

ROOT = Path(__file__).parents[1]


HOOKS = {hook.__name__: hook for hook in generate.hook_functions()}


def test_the_hooks_are_found() -> None:
    assert {"register_adapters", "register_tasks", "register_commands", "on_event"} <= set(HOOKS)
    assert len(HOOKS) == (ROOT / "pefttool" / "api" / "hookspecs.py").read_text(encoding="utf-8").count("\n@hookspec")


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_documented_with_its_exact_signature(name: str) -> None:
    source = (ROOT / "pefttool" / "api" / "hookspecs.py").read_text(encoding="utf-8")
    (written,) = re.findall(rf"^def ({name}\(.*\) -> .*):$", source, re.MULTILINE)
    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    assert f"\n## `{written}`\n" in page


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_has_a_test_of_its_own(name: str) -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
    assert re.search(rf"^def test_hook_{name}\b", tests, re.MULTILINE), f"write test_hook_{name}"


@pytest.mark.parametrize("page", generate.pages())
def test_a_generated_page_is_up_to_date(page: str) -> None:
    written = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert written == generate.pages()[page], "run `make docs`"


def test_the_number_of_cases_is_told_where_it_matters() -> None:
    count = re.search(r"^\d+ cases of \d+ kinds", generate.cases_page(), re.MULTILINE)
    assert count is not None and count[0] in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
