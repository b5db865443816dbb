"""Questions that people really ask, with the answers of those who support them: the FAQs of Debian and of Python."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pefttool import DataError
from pefttool_examples.archives import Debian
from pefttool_examples.datasets import write_rows

DEBIAN_FAQ = Debian(
    "debian-faq",
    "11.1",
    "debian-faq_11.1_all.deb",
    "427426e0cfa6888622fc1d72631071cb4b5a1f86ccde722e7820bcef284de5d0",
    or_newer=True,
)
PYTHON_DOC = Debian(
    "python3.11-doc",
    "3.11.2-6+deb12u8",
    "python3.11-doc_3.11.2-6+deb12u8_all.deb",
    "50eb63e7f636c4281e9ce1b8f10386f1def42159eddce34fc1f41c46261df71b",
    or_newer=True,
)
#: Characters of an answer: its first sentences up to so many, and no fewer than these.
LONGEST, SHORTEST = 240, 40
HEADINGS = ("h1", "h2", "h3", "h4")
#: What is no running text, or is in the margin.
SKIPPED = ("pre", "table", "script", "style", "nav", "dl")
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
NUMBER = re.compile(r"^(\d+\.)+\s*")
EVAL_ROWS = 40


def make_support(folder: Path) -> None:
    """Conversations of one question and its answer, in a fixed random order: train.jsonl and eval.jsonl."""
    rows = [{"messages": [_said("user", q), _said("assistant", a)]} for q, a in conversations()]
    _write(folder, rows)


def conversations() -> list[tuple[str, str]]:
    """(question, answer) of both FAQs, each question once, in a fixed random order."""
    pages = [
        *sorted((DEBIAN_FAQ.folder() / "usr/share/doc/debian/FAQ").glob("*.en.html")),
        *sorted((PYTHON_DOC.folder() / "usr/share/doc/python3.11/html/faq").glob("*.html")),
    ]
    if len(pages) < 20:
        raise DataError("the FAQs of debian-faq and python3.11-doc are not where they were: are these the versions?")
    found: dict[str, str] = {}
    for page in pages:
        for question, answer in answers(page.read_text(encoding="utf-8")):
            found.setdefault(question, answer)
    rows = list(found.items())
    random.Random(0).shuffle(rows)
    return rows


def answers(page: str) -> Iterator[tuple[str, str]]:
    """(question, the first sentences below it) of the headings of an HTML page that end with a question mark."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    for heading, paragraphs in reader.sections:
        question, answer = NUMBER.sub("", heading), ""
        for sentence in SENTENCE.split(" ".join(paragraphs)):
            if len(f"{answer} {sentence}") > LONGEST:
                break
            answer = f"{answer} {sentence}".strip()
        if question.endswith("?") and len(answer) >= SHORTEST and not answer.endswith(":"):
            yield question, answer


class _Reader(HTMLParser):
    """Headings, each with the paragraphs that follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: list[tuple[str, list[str]]] = []
        self._text: list[str] | None = None
        self._skipped = 0

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self._skipped += tag in SKIPPED
        if tag == "a" and ("class", "headerlink") in attributes:
            self._skipped += 1
        if tag in (*HEADINGS, "p") and not self._skipped:
            self._text = []

    def handle_endtag(self, tag: str) -> None:
        if tag in SKIPPED or (tag == "a" and self._skipped):
            self._skipped = max(0, self._skipped - 1)
        if tag not in (*HEADINGS, "p") or self._text is None:
            return
        text = " ".join("".join(self._text).split())
        self._text = None
        if tag in HEADINGS:
            self.sections.append((text, []))
        elif self.sections and text:
            self.sections[-1][1].append(text)

    def handle_data(self, data: str) -> None:
        if self._text is not None and not self._skipped:
            self._text.append(data)


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _write(folder: Path, rows: list[dict[str, Any]]) -> None:
    write_rows(folder / "eval.jsonl", rows[:EVAL_ROWS])
    write_rows(folder / "train.jsonl", rows[EVAL_ROWS:])
