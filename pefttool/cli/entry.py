"""From arguments to an exit code: every failure is one line on standard error, never a traceback."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence

import click

from pefttool.api.errors import Interrupted, PefttoolError
from pefttool.cli.group import cli
from pefttool.cli.output import plain_line
from pefttool.config.plugins import one_line

#: Set it to see the traceback of any error as well.
TRACEBACK = "PEFTTOOL_TRACEBACK"
INTERRUPTED = 130
#: What a group without its command raises (`pefttool data`): its message is the whole help. New in click 8.2.
HELP = getattr(click.exceptions, "NoArgsIsHelpError", ())
BUG = 70
#: The disk, or the share of it that is this user's, has no room left.
FULL = (errno.ENOSPC, errno.EDQUOT)


def execute(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code: 0, an error's own (errors.py), 2 for usage, 70 for a bug, 130 for Ctrl-C."""
    try:
        code = cli.main(list(arguments), prog_name="pefttool", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except Interrupted as signalled:
        click.echo(str(signalled), err=True)
        return signalled.exit_code
    except PefttoolError as error:
        return _complain(str(error).splitlines() or [type(error).__name__], error.exit_code)
    except click.ClickException as error:
        if isinstance(error, HELP):
            click.echo(error.format_message(), err=True)
            return click.UsageError.exit_code
        return _complain([f"{error.format_message()}{_hint(error)}"], error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _complain(["interrupted"], INTERRUPTED)
    except BrokenPipeError:
        # The reader has gone (`| head`); Python flushes once more at exit, which must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in FULL:
            return _bug(error)
        where = f" ({error.filename})" if error.filename else ""
        return _complain([f"{error.strerror}{where}: make room, then give the same command again"], 1)
    except Exception as error:  # nobody's fault but ours, or a plugin's
        return _bug(error)


def _bug(error: Exception) -> int:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return _complain(
        [
            f"{one_line(error)} (in {place.filename}, line {place.lineno}): a bug in pefttool or a plugin,"
            f" please report it; {TRACEBACK}=1 shows the traceback"
        ],
        BUG,
    )


def _complain(lines: Sequence[str], code: int) -> int:
    if os.environ.get(TRACEBACK):
        traceback.print_exc()
    for line in lines:
        click.echo(f"error: {plain_line(line)}", err=True)
    return code


def _hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return "" if context is None else f" (see {context.command_path} --help)"
