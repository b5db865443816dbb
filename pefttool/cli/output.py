"""What the verbs print: JSON, and tables that are plain where nobody looks at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from pefttool.files import strict_json

#: Characters of a line of complaint: a value may be as long as a book.
LONGEST = 1000


def plain_line(text: str) -> str:
    """One line for the terminal: characters that cannot be printed are escaped, a very long line keeps its ends.

    What complaints quote comes from files of others, and a terminal obeys what it is sent.
    """
    shown = text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    half = LONGEST // 2
    return shown if len(shown) <= LONGEST else f"{shown[:half]} ... {shown[-half:]}"


def print_json(value: Any) -> None:
    click.echo(strict_json.dumps(value, indent=2))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; elsewhere aligned columns, one line a row, never cut."""
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(*headers, box=box.SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(*(_literal(cell) for cell in row))
        Console().print(table)
        return
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    for row in [headers, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _literal(cell: str) -> Any:
    """Text that rich does not search for [markup]."""
    from rich.text import Text

    return Text(cell)
