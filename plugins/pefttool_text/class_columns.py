"""Columns of classes in Parquet files of the `datasets` library: the rows hold numbers, the file their names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pefttool.toolkit.class_names import Numbered

#: The key of the file's metadata under which `datasets` writes its features.
METADATA = b"huggingface"
#: The number of a row whose class is not known (GLUE's test rows, SNLI's rows without agreement).
UNKNOWN = -1


def class_columns(path: Path) -> Mapping[str, Sequence[str]]:
    """The names of the classes, in the order of their numbers, of each column that holds such numbers or lists of them.

    Nothing for files that `datasets` did not write, and for those that cannot be read: reading their rows says why.
    """
    import pyarrow.parquet

    try:
        described = (pyarrow.parquet.read_schema(path).metadata or {}).get(METADATA, b"{}")
        features = json.loads(described).get("info", {}).get("features", {})
        columns = {str(name): _names(feature) for name, feature in features.items()}
    except (OSError, ValueError, AttributeError, pyarrow.ArrowException):
        return {}
    return {name: names for name, names in columns.items() if names}


def _names(feature: Any) -> Sequence[str]:
    """The names of `ClassLabel`, alone or as what a list holds."""
    if isinstance(feature, list):
        return _names(feature[0]) if len(feature) == 1 else ()
    if not isinstance(feature, Mapping):
        return ()
    if feature.get("_type") in ("Sequence", "List", "LargeList"):
        return _names(feature.get("feature"))
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def named_classes(value: Any, names: Sequence[str]) -> Any:
    """A number of a class, or a list of them, by name; None for one that is not known. What is no number stays."""
    if isinstance(value, list):
        return [named_classes(item, names) for item in value]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value == UNKNOWN:
        return None
    return Numbered(names[value], value) if 0 <= value < len(names) else value
