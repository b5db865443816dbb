"""A process that tells on itself: what it unpickles, runs, starts and connects to, and who caused it.

Python's audit hooks (PEP 578) see every such event, also those of C code. Who caused one is read off the stack: the
nearest frame of a pefttool package below the event. What happens while a module is imported is kept apart
(`importing`): dataclasses and named tuples are made by `exec`, and compiled modules are unmarshalled.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

#: Beside everything of `socket.`: unpickling, code that is made while running, other processes, other ways out.
WATCHED = frozenset(
    [
        "pickle.find_class",
        "marshal.loads",
        "exec",
        "compile",
        "os.system",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "subprocess.Popen",
        "pty.spawn",
        "cpython.run_command",
        "cpython.run_file",
        "urllib.Request",
        "http.client.connect",
        "ftplib.connect",
        "smtplib.connect",
        "telnetlib.Telnet.open",
        "poplib.connect",
        "imaplib.open",
        "webbrowser.open",
    ]
)
OURS = "pefttool"


class Act(NamedTuple):
    """One kind of event. `owner` is MODULE:FUNCTION of pefttool, or "" where nothing of it was on the stack; `via` is
    the package nearest to the event that is not of the standard library; `detail` says what of."""

    event: str
    owner: str
    via: str
    detail: str
    importing: bool


def watch() -> Counter[Act]:
    """Count events from now on, for as long as the process lives."""
    acts: Counter[Act] = Counter()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in WATCHED or event.startswith("socket."):
            detail = _detail(event, arguments)
            if detail is not None:
                acts[_act(event, detail, sys._getframe(1))] += 1

    sys.addaudithook(hook)
    return acts


def _detail(event: str, arguments: tuple[Any, ...]) -> str | None:
    """What of; None for code that comes from a file, as all modules do."""
    if event in ("exec", "compile"):
        code = arguments[0] if event == "exec" else arguments[1]
        name = code.co_filename if isinstance(code, CodeType) else code
        name = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        return name if name.startswith("<") and not name.startswith("<frozen") else None
    if event == "pickle.find_class":
        return ".".join(map(str, arguments[:2]))
    if event == "marshal.loads":
        return ""
    return " ".join(str(argument)[:80] for argument in arguments[:2])


def _act(event: str, detail: str, frame: FrameType | None) -> Act:
    owner, via, importing = "", "", False
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        package = module.partition(".")[0]
        if module.startswith("importlib._bootstrap"):
            importing = True
        elif owner:
            pass
        elif package.startswith(OURS):
            owner = f"{module}:{frame.f_code.co_name}"
        elif not via and package not in sys.stdlib_module_names and package not in ("__main__", __name__):
            via = package
        frame = frame.f_back
    return Act(event, owner, via, detail, importing)


def unfinish(run: str, copy: str) -> int:
    """A copy of a finished run as it was when it had its first checkpoint, and no more."""
    shutil.copytree(run, copy)
    Path(copy, "metrics.json").unlink()
    shutil.rmtree(Path(copy, "adapter"))
    for checkpoint in sorted(Path(copy, "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    return 0


def main(arguments: Sequence[str]) -> None:
    """`COMMANDS OUT`: run command lines (a JSON list of lists) one after another, and write what was seen to OUT."""
    acts = watch()
    from pefttool.cli.entry import execute

    steps = {"unfinish": unfinish}
    codes = [steps.get(c[0], lambda *_, c=c: execute(c))(*c[1:]) for c in json.loads(arguments[0])]
    seen = [{**act._asdict(), "times": times} for act, times in acts.items()]
    with open(arguments[1], "w", encoding="utf-8") as stream:
        json.dump({"codes": codes, "acts": seen}, stream)


if __name__ == "__main__":
    main(sys.argv[1:])
