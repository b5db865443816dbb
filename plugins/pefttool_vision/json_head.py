"""The keys of a JSON object as far as the first kilobytes of its file show them: enough to tell layouts apart."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pefttool import DataError

HEAD = 4096
_KEY = re.compile(r'\s*("(?:[^"\\]|\\.)*")\s*:\s*(\S)')


def top_level(path: Path) -> dict[str, str]:
    """Key -> the first character of its value (`[`, `{`, `"`, a digit), of the file's one object; {} for other files.

    Raises DataError if the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(HEAD).removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").lstrip()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return _keys(text)


def _keys(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    if not text.startswith("{"):
        return found
    at = 1
    while match := _KEY.match(text, at):
        try:
            found[json.loads(match[1])] = match[2]
        except ValueError:
            return found
        end = _end_of_value(text, match.start(2))
        if end is None or not text.startswith(",", end):
            return found
        at = end + 1
    return found


def _end_of_value(text: str, start: int) -> int | None:
    """Where the value that starts here is followed by a comma or the end of its object; None beyond the text."""
    depth, quoted, at = 0, False, start
    while at < len(text):
        character = text[at]
        if quoted:
            if character == "\\":
                at += 1
            quoted = character != '"'
        elif character == '"':
            quoted = True
        elif character in "[{":
            depth += 1
        elif depth and character in "]}":
            depth -= 1
        elif not depth and character in ",]}":
            return at
        at += 1
    return None
