"""The exception tree: one root, exit codes, one line a complaint."""

from __future__ import annotations

import inspect

import pytest

from pefttool.api import errors
from pefttool.api.errors import PefttoolError, Refused, UsageError, suggest

TREE = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls) and issubclass(cls, PefttoolError)}


def test_every_error_is_in_the_drawing_with_its_exit_code() -> None:
    drawn = {
        line.split()[1]: int(line.rsplit("exit ", 1)[1])
        for line in (errors.__doc__ or "").splitlines()
        if line.strip().startswith(("├", "└"))
    }
    assert drawn == {name: cls.exit_code for name, cls in TREE.items() if cls is not PefttoolError}


def test_refused_keeps_every_complaint_in_order() -> None:
    error = Refused(line for line in ("b: second", "a: first"))
    assert error.complaints == ("b: second", "a: first")
    assert str(error).splitlines() == ["b: second", "a: first"]


@pytest.mark.parametrize(
    ("given", "allowed", "expected"),
    [
        ("lroa", ["lora", "head"], "did you mean 'lora'? (allowed: head, lora)"),
        ("zzz", ["lora", "head"], "(allowed: head, lora)"),
        ("", [], "(allowed: none)"),
        ("x", iter(["b", "a"]), "(allowed: a, b)"),
    ],
)
def test_suggest(given: str, allowed: list[str], expected: str) -> None:
    assert suggest(given, allowed) == expected


def test_errors_are_told_apart_from_bugs() -> None:
    with pytest.raises(PefttoolError):
        raise UsageError("x")
    assert not issubclass(KeyError, PefttoolError)
