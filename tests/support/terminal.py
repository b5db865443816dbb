"""The command line in the tests' own process."""

from __future__ import annotations

import pytest

from pefttool.cli import entry
from pefttool.config.plugins import ALLOW_LIST


class Terminal:
    """Runs the command line in this process: exit code, standard output, lines of standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        monkeypatch.delenv(entry.TRACEBACK, raising=False)
        self.allow()

    def allow(self, *plugins: str) -> None:
        """Only these plugins may be loaded; none, until this is called."""
        self._monkeypatch.setenv(ALLOW_LIST, ",".join(plugins))

    def run(self, *arguments: str) -> tuple[int, str, list[str]]:
        code = entry.execute(arguments)
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err.splitlines()
