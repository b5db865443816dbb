"""Make docs/demo.svg from a real run: `python docs/record.py pefttool run --adapter lora`.

What is drawn is what the command printed, standard error and standard output in their order, and nothing else.
"""

from __future__ import annotations

import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 112
TARGET = Path(__file__).with_name("demo.svg")


def main() -> None:
    command = sys.argv[1:]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    console = Console(record=True, width=WIDTH, file=StringIO(), highlight=False)
    console.print(Text(f"$ {' '.join(command)}", style="bold"))
    for line in process.stdout:
        sys.stdout.write(line)
        console.print(Text(line.rstrip("\n")))
    if process.wait() != 0:
        raise SystemExit(process.returncode)
    TARGET.write_text(console.export_svg(title="pefttool"), encoding="utf-8")


if __name__ == "__main__":
    main()
