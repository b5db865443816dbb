"""The Bible in English and Spanish, verse by verse: two public-domain translations that Debian packages for SWORD."""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pefttool import DataError
from pefttool_examples.archives import Debian
from pefttool_examples.carriers import Carrier

PYSWORD = Carrier("pysword", "0.2.8", "pysword")
ENGLISH = Debian(
    "sword-text-web",
    "426.0-1",
    "sword-text-web_426.0-1_all.deb",
    "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
)
SPANISH = Debian(
    "sword-text-sparv",
    "2.60-1",
    "sword-text-sparv_2.60-1_all.deb",
    "5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf",
)
#: SWORD's own names of the two texts: World English Bible, and Reina-Valera of 1909.
MODULES = {"en": (ENGLISH, "engWEB2015eb"), "es": (SPANISH, "spaRV1909eb")}

#: What a model is adapted to. It is pretrained on prose: on no book of these, nor of other verse.
VERSE = ("Psalms", "Proverbs")
OTHER_VERSE = ("Job", "Ecclesiastes", "Song of Solomon", "Lamentations")
#: The two editions do not count the same verses here.
COUNTED_DIFFERENTLY = ("III John", "Revelation of John")
#: English words of the longest pair: what is longer costs more time than it teaches.
LONGEST = 16
TRAIN_ROWS, EVAL_ROWS = 1_600, 120
#: A pair in which one side has this many times the other's words is misaligned, or holds a glossary.
ODD = 3
#: What stands in the text and is none of it: footnotes, cross references, headings of the edition.
ASIDE = re.compile(r'<note\b.*?</note>|<title(?![^>]*canonical="true")[^>]*>.*?</title>', re.DOTALL)
TAG = re.compile(r"<[^>]+>")


def make_psalms(folder: Path) -> None:
    """Psalms and Proverbs in a fixed random order: train.en, train.es, eval.en and eval.es, a verse on each line."""
    rows = pairs(VERSE)
    random.Random(0).shuffle(rows)
    parts = {"eval": rows[:EVAL_ROWS], "train": rows[EVAL_ROWS : EVAL_ROWS + TRAIN_ROWS]}
    for part, chosen in parts.items():
        for i, language in enumerate(MODULES):
            text = "".join(f"{pair[i]}\n" for pair in chosen)
            (folder / f"{part}.{language}").write_text(text, encoding="utf-8")


def prose() -> list[str]:
    """The names of the other books that both editions have."""
    without = {*VERSE, *OTHER_VERSE, *COUNTED_DIFFERENTLY}
    books = _bible("es").get_structure().get_books().values()
    return [book.name for testament in books for book in testament if book.name not in without]


def pairs(books: Sequence[str]) -> list[tuple[str, str]]:
    """(English, Spanish) of the verses of these books, in their order; long, empty and odd ones are left out."""
    texts = [[verse for book in books for verse in _verses(language, book)] for language in MODULES]
    return [(en, es) for en, es in zip(*texts, strict=True) if _is_pair(en.split(), es.split())]


def _is_pair(en: Sequence[str], es: Sequence[str]) -> bool:
    return 0 < len(en) <= LONGEST and len(es) > 0 and len(en) < ODD * len(es) and len(es) < ODD * len(en)


def _verses(language: str, book: str) -> Iterator[str]:
    for markup in _bible(language).get_iter(books=[book], clean=False):
        yield " ".join(TAG.sub("", ASIDE.sub(" ", markup)).split()).replace(" ,", ",").replace(" .", ".")


@lru_cache
def _bible(language: str) -> Any:
    if PYSWORD.installed is None:
        raise DataError(f"this example needs the package {PYSWORD.pin}, which reads SWORD's files: {PYSWORD.command}")
    package, name = MODULES[language]
    modules = importlib.import_module("pysword.modules").SwordModules(str(package.folder() / "usr/share/sword"))
    modules.parse_modules()
    bible = modules.get_bible_from_module(name)
    # It unpacks a whole book for every verse: fifteen times as slow as remembering the last one.
    bible._decompressed_text = lru_cache(2)(bible._decompressed_text)
    return bible
