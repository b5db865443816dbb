"""Good rows of the tasks on a text encoder, of different lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def plain(folder: Path) -> Rows:
    return [{"text": t} for t in ("to be or not to be", "shorter one", "a line of yet another length")]


def entities(folder: Path) -> Rows:
    return [
        {"tokens": ["Ada", "Lovelace", "lives"], "tags": ["B-person", "I-person", "O"]},
        {"tokens": ["in", "Rome"], "tags": ["O", "B-place"]},
        {
            "tokens": ["She", "wrote", "to", "Mary", "Somerville", "from", "Ockham", "Park"],
            "tags": ["O", "O", "O", "B-person", "I-person", "O", "B-place", "I-place"],
        },
    ]


def parts_of_speech(folder: Path) -> Rows:
    return [
        {"words": ["dogs", "bark"], "pos_tags": ["NOUN", "VERB"]},
        {"words": ["a", "dog", "barks", "loudly"], "pos_tags": ["DET", "NOUN", "VERB", "ADV"]},
        {"words": ["run", "!"], "pos_tags": ["VERB", "PUNCT"]},
    ]


def _asked(question: str, context: str, answer: str | None) -> dict[str, Any]:
    answers: dict[str, Any] = {"text": [], "answer_start": []}
    if answer is not None:
        answers = {"text": [answer], "answer_start": [context.index(answer)]}
    return {"id": question, "question": question, "context": context, "answers": answers}


def questions(folder: Path) -> Rows:
    return [
        _asked("Who came?", "Ada came at nine.", "Ada"),
        _asked("When did she come?", "Ada came at nine.", "nine"),
        _asked("Where to?", "Long before anybody else, the two of them went to Rome by train.", "Rome"),
    ]


def unanswerable(folder: Path) -> Rows:
    return [*questions(folder), _asked("Why?", "Nobody ever said a word.", None)]


def pairs(folder: Path) -> Rows:
    return [
        {"premise": "a dog runs", "hypothesis": "an animal moves", "label": "yes"},
        {"premise": "a dog runs in the park on a sunny day", "hypothesis": "it sleeps", "label": "no"},
        {"premise": "rain", "hypothesis": "sun", "label": "no"},
    ]


def many_labels(folder: Path) -> Rows:
    return [
        {"text": "cheap and good", "labels": ["cheap", "good"]},
        {"text": "dear, though it is good for many things", "labels": ["good"]},
        {"text": "neither of them", "labels": []},
    ]


def ratings(folder: Path) -> Rows:
    return [
        {"sentence1": "one", "sentence2": "1", "score": 4.5},
        {"sentence1": "a sentence that goes on for a while", "sentence2": "a short one", "score": 0.25},
        {"sentence1": "two", "sentence2": "three", "score": 1.0},
    ]


CONLL = """-DOCSTART- -X- O

EU NNP B-org
rejects VBZ O

Peter NNP B-person
Blackburn NNP I-person
"""
SENTENCES = [
    {"tokens": ["EU", "rejects"], "tags": ["B-org", "O"]},
    {"tokens": ["Peter", "Blackburn"], "tags": ["B-person", "I-person"]},
]
_PASSAGE = "Ada came at nine. Grüße!"
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Ada",
            "paragraphs": [
                {
                    "context": _PASSAGE,
                    "qas": [
                        {"id": "a", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]},
                        {"id": "b", "question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        },
        {"title": "No", "paragraphs": [{"context": "Nothing.", "qas": [{"id": "c", "question": "What?"}]}]},
    ],
}
SQUAD_ROWS: Rows = [
    {
        "id": "a",
        "question": "Who?",
        "context": _PASSAGE,
        "title": "Ada",
        "answers": {"text": ["Ada"], "answer_start": [0]},
    },
    {
        "id": "b",
        "question": "Why?",
        "context": _PASSAGE,
        "title": "Ada",
        "answers": {"text": [], "answer_start": []},
    },
    {"id": "c", "question": "What?", "context": "Nothing.", "title": "No"},
]
