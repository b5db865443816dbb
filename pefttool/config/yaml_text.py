"""YAML as recipes use it: a key given twice is refused, and 1e-3 is a number (YAML 1.1 reads it as text).

Only plain values are made of it, of no tag of any language, and there are no aliases: ten lines of them can stand for
gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

NEXT_LINE = "\x85"
_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            problem = f"found the alias *{event.anchor}, and recipes have none: write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `_Loader` would read as a number, and escapes the line break that PyYAML would fold."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # what `_Loader` refuses is not written

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if NEXT_LINE in data else None)


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
_Dumper.add_representer(str, _Dumper.represent_str)


def load(text: str) -> Any:
    """One document of plain values. Raises yaml.YAMLError, or RecursionError where it is nested too deeply."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        raise
    except Exception as error:  # PyYAML's constructors of dates, `!!int` and `!!float` do not wrap what they raise
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error


def dump(document: Any) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
