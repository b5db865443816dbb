"""An entry of the corpus: an input that is wrong, how it reaches pefttool, and what the answer has to say."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Writes the input into a folder, and gives the command line that meets it.
Make = Callable[[Path], Sequence[str]]
#: Every answer says what to do next, in the imperative.
NEXT_STEP = re.compile(
    r"\b(add|align|allowed|choose|close|convert|copy|did you mean|download|drop|get|give|install"
    r"|leave (it|one|them) out|load (it|the)|mend|name (another|it|one|others|your|yours)|pip install|put|quote"
    r"|reinstall|remove|restore|resume with|run (once|`)|save it|say|start again|such as|train again|uninstall|update"
    r"|use|write)\b",
    re.IGNORECASE,
)
#: What no answer may hold: a traceback, an apology for a bug, an object's address.
NEVER = re.compile(r"Traceback|a bug in pefttool|please report it| at 0x[0-9a-f]{6,}|<class '|<function ")
LONGEST_LINE, MOST_LINES = 1200, 3
#: Within this time each is answered, and nothing hangs. Libraries that are imported for the first time take most of it.
SECONDS = 60


@dataclass(frozen=True)
class Entry:
    """`words` have to occur in the answer: file, line or key; the value; what is allowed; the next step.

    `real`: also run as a command in a process of its own. `codes` are the exit statuses that are right; an entry that
    is `warned` about goes on (a broken plugin among good ones). `plugins` are all that may be loaded, None: all.
    """

    name: str
    make: Make
    words: tuple[str, ...]
    real: bool = False
    codes: tuple[int, ...] = (1, 2)
    warned: bool = False
    plugins: str | None = None


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith(("error: ", "warning: "))]


def faults(entry: Entry, answer: Answer) -> list[str]:
    """What is wrong with an answer; nothing, if it is a good one."""
    found: list[str] = []

    def require(true: Any, what: str) -> None:
        found.extend([] if true else [what])

    text = "\n".join(answer.lines)
    require(answer.code in entry.codes, f"exit status {answer.code}, expected one of {entry.codes}")
    require(1 <= len(answer.lines) <= MOST_LINES, f"{len(answer.lines)} lines of answer, expected 1 to {MOST_LINES}")
    require(all(len(line) <= LONGEST_LINE for line in answer.lines), "a line that is too long to be read")
    require(not NEVER.search(answer.err), f"it holds {NEVER.findall(answer.err)}")
    require("\x1b" not in answer.err, "it holds escapes for the terminal")
    require(entry.warned or not answer.out, f"output in spite of the error: {answer.out[:200]!r}")
    for word in entry.words:
        require(word in text, f"it does not say {word!r}")
    require(NEXT_STEP.search(text), "it says no next step")
    return found
