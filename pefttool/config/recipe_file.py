"""A recipe's file: YAML of a decent size that holds a mapping."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

import yaml

from pefttool.api.errors import UsageError
from pefttool.config import yaml_text

#: Bytes of a recipe file.
LONGEST = 1 << 20


def read(path: Path) -> dict[str, Any]:
    """A recipe file as a nested dictionary. Raises UsageError with the file and the line."""
    try:
        with path.open("rb") as stream:  # no further: it may be a device that never ends
            raw = stream.read(LONGEST + 1)
        if len(raw) > LONGEST:
            raise UsageError(
                f"recipe {path} is longer than {LONGEST} bytes, expected a page of YAML; give another file"
            )
        document = yaml_text.load(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = f"found byte 0x{error.object[error.start]:02x} at position {error.start + 1}"
        raise UsageError(f"recipe {path} cannot be read: {found}, expected UTF-8 text; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"recipe {path} cannot be read: {reason}; give the path of a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UsageError(f"recipe {path}{line} is not YAML: {reason}; mend that line") from error
    except RecursionError as error:
        raise UsageError(f"recipe {path} is nested too deeply; a recipe has two levels: remove the others") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(
            f"recipe {path}:1 is a {type(document).__name__}; expected keys such as `adapter:` and `data:`: write them"
        )
    out = document.get("out")
    if isinstance(out, str) and (PurePath(out).is_absolute() or ".." in PurePath(out).parts or out.startswith("~")):
        raise UsageError(
            f"recipe {path}: out: {out!r} leads out of the folder that pefttool runs in, where a recipe may not write:"
            f" give a path inside it, or --out {out} on the command line"
        )
    return document
