"""SQuAD's JSON: passages with questions, whose answers are words of the passage (version 1, and 2 with none)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pefttool import DataError, DataFormat, DataProblem, Row
from pefttool.toolkit import text_files
from pefttool.toolkit.columns import describe
from pefttool_text import reading

#: One object, whose `data` is a list of objects (or an empty one).
OUTER = re.compile(rb'\{\s*("version"\s*:\s*("[^"]*"|[\d.]+)\s*,\s*)?"data"\s*:\s*\[\s*[{\]]')
INNER = re.compile(rb'"paragraphs"\s*:\s*\[')


def is_squad(head: bytes) -> bool:
    """Whether the first kilobytes of a JSON file are SQuAD's."""
    return OUTER.match(head) is not None and INNER.search(head) is not None


class Squad(DataFormat):
    """SQuAD 1 and 2: a row for each question, `id`, `question`, `context` and `answers`; its place is its number.

    What is wrong with an article or a paragraph stands where its first question would.
    """

    name = "squad"

    def sniff(self, path: Path) -> str | None:
        if text_files.suffix(path) == ".json" and is_squad(text_files.head(path)):
            return "passages and questions as in SQuAD"
        return None

    def read(self, path: Path, options: Any) -> Iterator[Row | DataProblem]:
        document = reading.json_document(path)
        articles = _list(document, "data")
        if articles is None:
            raise DataError(f"{path}: {_no_list('the file', 'data', document)}; mend the file")
        number = 0
        for place, article in enumerate(articles, 1):
            name = _titled(f"article {place}", article)
            paragraphs = _list(article, "paragraphs")
            if paragraphs is None:
                yield DataProblem(str(path), number + 1, _no_list(name, "paragraphs", article))
            for at, paragraph in enumerate(paragraphs or (), 1):
                questions = _list(paragraph, "qas")
                if questions is None:
                    yield DataProblem(str(path), number + 1, _no_list(f"{name}, paragraph {at}", "qas", paragraph))
                for question in questions or ():
                    number += 1
                    yield _record(article, paragraph, question, str(path), number)


def _list(owner: Any, key: str) -> list[Any] | None:
    found = owner.get(key) if isinstance(owner, Mapping) else None
    return found if isinstance(found, list) else None


def _no_list(where: str, key: str, owner: Any) -> str:
    found = owner.get(key) if isinstance(owner, Mapping) else owner
    return f"{where} has {describe(found)} as {key!r}, expected a list, as in SQuAD"


def _titled(name: str, article: Any) -> str:
    title = article.get("title") if isinstance(article, Mapping) else None
    return f"{name} ({describe(title)})" if isinstance(title, str) else name


def _record(article: Any, paragraph: Any, question: Any, file: str, number: int) -> Row | DataProblem:
    context = paragraph.get("context")
    if not isinstance(question, Mapping):
        return DataProblem(file, number, f"found {describe(question)} as a question, expected an object")
    name = question.get("id", number)
    values = {"id": str(name), "question": question.get("question"), "context": context}
    for key in ("question", "context"):
        if not isinstance(values[key], str):
            return DataProblem(file, number, f"item {name!r}: {key!r} is {describe(values[key])}, expected text")
    if isinstance(article.get("title"), str):
        values["title"] = article["title"]
    if "answers" not in question and not question.get("is_impossible"):
        return Row(values, file, number)  # to be predicted
    given = [] if question.get("is_impossible") else question["answers"]
    complaint = _not_answers(given, str(context))
    if complaint is not None:
        return DataProblem(file, number, f"item {name!r}: {complaint}")
    answers = {"text": [a["text"] for a in given], "answer_start": [a["answer_start"] for a in given]}
    return Row({**values, "answers": answers}, file, number)


def _not_answers(given: Any, context: str) -> str | None:
    if not isinstance(given, list) or not all(isinstance(answer, Mapping) for answer in given):
        return f"'answers' is {describe(given)}, expected a list of objects"
    for answer in given:
        text, start = answer.get("text"), answer.get("answer_start")
        if not isinstance(text, str) or not text or type(start) is not int or start < 0:
            return f"found {describe(dict(answer))}, expected a `text` and its place in the context as `answer_start`"
        there = context[start : start + len(text)]
        if there != text:
            return f"answer_start {start} of {describe(text)} does not match: the context has {describe(there)} there"
    return None
