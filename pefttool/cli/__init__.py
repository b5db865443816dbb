"""The `pefttool` command. Each verb is imported when it is used, so that `--help` answers at once."""

from __future__ import annotations

import sys

from pefttool.cli.entry import execute


def main() -> None:
    """The console entry: runs the command line and exits."""
    sys.exit(execute(sys.argv[1:]))
