"""Every error that pefttool raises on purpose; the command line prints them without a traceback.

    PefttoolError
    ├── UsageError       a flag, a recipe key or an option is wrong          exit 2
    ├── Refused          the plan found problems; all of them are listed     exit 2
    ├── PluginError      a plugin is broken, unknown, or clashes             exit 2
    ├── DataError        a file or a row is wrong                            exit 1
    ├── ModelError       a model cannot be had, or is not what it should be  exit 1
    ├── RunError         training or saving cannot go on                     exit 1
    ├── NotMergeable     an adapter that cannot be folded into the weights   exit 1
    └── Interrupted      Ctrl-C (or SIGTERM: 143) ended the run              exit 130

A message names the thing, the value given, the values allowed and the next step, in one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class PefttoolError(Exception):
    """The root: `except PefttoolError` catches everything that pefttool says on purpose."""

    exit_code = 1


class UsageError(PefttoolError):
    exit_code = 2


class PluginError(PefttoolError):
    exit_code = 2


class DataError(PefttoolError):
    pass


class ModelError(PefttoolError):
    pass


class RunError(PefttoolError):
    pass


class NotMergeable(PefttoolError):
    pass


class Interrupted(PefttoolError):
    """No mistake: the user, or the system, ended the run. The exit code is the shell's for that signal."""

    exit_code = 130

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Refused(PefttoolError):
    """Several complaints at once, one line each, whatever the keys and values that they quote hold."""

    exit_code = 2

    def __init__(self, complaints: Iterable[str]) -> None:
        self.complaints = tuple(c.replace("\r", "\\r").replace("\n", "\\n") for c in complaints)
        super().__init__("\n".join(self.complaints))


def suggest(given: str, allowed: Iterable[str], called: str = "allowed") -> str:
    """`did you mean 'lora'? (allowed: full, head, lora)`: the tail of every unknown-name message."""
    names = sorted(allowed)
    close = get_close_matches(given, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}({called}: {', '.join(names) or 'none'})"


def one_line(error: BaseException, limit: int = 300) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = f"{type(error).__name__}: {text}" if isinstance(error, KeyError) else text
    return text if len(text) <= limit else text[: limit - 3] + "..."
