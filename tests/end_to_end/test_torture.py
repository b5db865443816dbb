"""Twenty kills; `make torture` makes two hundred, with a new seed each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.slow
def test_twenty_kills_are_survived() -> None:
    """In a process of its own: it forks, and this one has threads."""
    command = [sys.executable, str(SUPPORT / "torture.py"), "--kills", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "kills survived" in line]
    assert int(line.split()[0]) >= 20
