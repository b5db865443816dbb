"""Parallel text as Moses and OPUS have it: NAME.en and NAME.es, where a line of one translates the same line of the
other."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pefttool import DataError, DataFormat, DataProblem, Row
from pefttool.toolkit import text_files
from pefttool_text.pair_rows import TRANSLATION

#: ISO 639-1: what tells a language's suffix from any other. Longer codes need a region or a script (pt_BR, zh-Hant).
CODES = frozenset(
    re.findall(
        "[a-z]+",
        """
        aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el
        en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu
        ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na
        nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so
        sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
        """,
    )
)
LOCALE = re.compile(r"[a-z]{2,3}[_\-]([A-Z]{2}|[A-Z][a-z]{3})")


class ParallelText(DataFormat):
    """Two files, NAME.en and NAME.es: line i of one is the translation of line i of the other.

    The file that is named is the source, and in a folder the first by name. A row is on the source's line:
    {"translation": {"en": ..., "es": ...}}.
    """

    name = "parallel-text"

    def companions(self, path: Path) -> tuple[Path, ...]:
        return tuple(self._others(path)[:1])

    def sniff(self, path: Path) -> str | None:
        others = self._others(path) if _language(path) else []
        return f"its lines are those of {others[0].name} in another language" if len(others) == 1 else None

    @staticmethod
    def _others(path: Path) -> list[Path]:
        """Files beside this one that have its name and another language."""
        try:
            beside = [p for p in path.parent.glob(f"{glob.escape(path.stem)}.*") if p.stem == path.stem and p.is_file()]
        except OSError:
            return []
        return sorted(p for p in beside if p.name != path.name and _language(p))

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        """Raises DataError where the other file is missing, is not the only one, or has another number of lines."""
        others = self._others(path)
        if len(others) != 1:
            found = ", ".join(p.name for p in others) or "none"
            raise DataError(
                f"{path}: its translation should be beside it, under the same name with one other language's suffix"
                f" ({path.stem}.es), and there is {found}: put one there"
            )
        other = others[0]
        counts = [_count(p) for p in (path, other)]
        if counts[0] != counts[1]:
            raise DataError(
                f"{path} has {counts[0]} lines and {other} has {counts[1]}: line i of one has to be the translation of"
                " line i of the other; align them again"
            )
        languages = [p.suffix[1:] for p in (path, other)]
        for sides in zip(text_files.lines(path), text_files.lines(other), strict=True):
            (number, _, _), problem = sides[0], _problem((path, other), sides)
            texts = [text.strip() for _, text, _ in sides]
            yield problem or Row({TRANSLATION: dict(zip(languages, texts, strict=True))}, str(path), number)


def _problem(files: tuple[Path, Path], sides: tuple[tuple[int, str, DataProblem | None], ...]) -> DataProblem | None:
    """What keeps this pair of lines from being a row. It is told of the source's line, where the row would be."""
    for path, (number, text, fault) in zip(files, sides, strict=True):
        message = None if fault is None else fault.message
        if message is None and not text.strip():
            message = "found an empty line, expected text or no line in either file"
        if message is not None:
            where = "" if path == files[0] else f"{path}:{number}: "
            return DataProblem(str(files[0]), number, f"{where}{message}")
    return None


def _language(path: Path) -> str | None:
    suffix = path.suffix[1:]
    return suffix if suffix in CODES or LOCALE.fullmatch(suffix) else None


def _count(path: Path) -> int:
    """Lines, the last one with or without its end."""
    return sum(1 for _ in text_files.lines(path))
