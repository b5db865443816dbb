"""Lists that a table holds as text, as pandas writes them: `['a', 'b']`, and `[0 1 1]` of arrays."""

from __future__ import annotations

import ast
import re
from typing import Any

#: NumPy writes no commas.
ARRAY = re.compile(r"\[[\d.\s]*\]")


def is_written(value: Any) -> bool:
    """Whether this is the text of a list, in Python, JSON or NumPy."""
    text = value.strip() if isinstance(value, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return False
    try:
        return ARRAY.fullmatch(text) is not None or isinstance(ast.literal_eval(text), list)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
