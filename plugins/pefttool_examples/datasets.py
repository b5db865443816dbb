"""The example data: JSON Lines, made from what the carriers ship."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pefttool import DataError
from pefttool_examples.archives import inner_tar
from pefttool_examples.carriers import CHATTERBOT, VADER

#: In these topics an entry with more than two lines is a question and several answers to it, not a conversation.
ALTERNATIVE_ANSWERS = ("computers", "emotion")
TRAIN_ROWS, EVAL_ROWS = 4_000, 1_500
PRODUCT_TRAIN_ROWS, PRODUCT_EVAL_ROWS = 2_200, 1_000
#: Ratings go from -4 to 4; texts on which the raters' mean is nearer to 0 than this have no clear sentiment.
NEUTRAL = 0.2
#: Characters; what is shorter is a heading.
SHORTEST_PARAGRAPH = 120


def make_chatterbot(folder: Path) -> None:
    """English conversations of all topics, in the order of the corpus, without repetitions: `{"messages": [...]}`."""
    files = sorted(CHATTERBOT.file("data/english", DataError).glob("*.yml"))
    seen: dict[tuple[str, ...], None] = {}
    for path in files:
        seen.update(dict.fromkeys(conversations(path)))
    roles = ("user", "assistant")
    rows = ({"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(c)]} for c in seen)
    write_rows(folder / "train.jsonl", rows)


def conversations(path: Path) -> Iterator[tuple[str, ...]]:
    """Turns, user first, of each conversation in a corpus file; entries with an empty turn are left out."""
    import yaml

    # The base loader leaves every scalar a string: `- Yes` is an answer, not a truth value.
    document = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    for entry in document["conversations"]:
        if not isinstance(entry, list):
            continue  # one entry of trivia.yml is a line of text by mistake
        turns = [str(turn).strip() for turn in entry]
        if path.stem in ALTERNATIVE_ANSWERS:
            turns = turns[:2]
        turns = turns[: len(turns) // 2 * 2]  # a last turn of the user has no answer to learn
        if turns and all(turns):
            yield tuple(turns)


def make_movie_snippets(folder: Path) -> None:
    """Rated snippets of film reviews: `text` and `label`, negative or positive, in a fixed random order."""
    _rated(folder, "movieReviewSnippets", TRAIN_ROWS, EVAL_ROWS)


def make_product_snippets(folder: Path) -> None:
    """The same of reviews of products: another subject, judged by the same raters."""
    _rated(folder, "amazonReviewSnippets", PRODUCT_TRAIN_ROWS, PRODUCT_EVAL_ROWS)


def _rated(folder: Path, table: str, train: int, held_out: int) -> None:
    labels: dict[str, set[str]] = {}
    for rating, text in _ratings(table):
        if abs(rating) > NEUTRAL and text:
            labels.setdefault(text, set()).add("positive" if rating > 0 else "negative")
    rows = [{"text": text, "label": min(given)} for text, given in labels.items() if len(given) == 1]
    random.Random(0).shuffle(rows)
    write_rows(folder / "train.jsonl", rows[:train])
    write_rows(folder / "eval.jsonl", rows[train : train + held_out])


def make_python_reference(folder: Path) -> None:
    """Paragraphs of prose of the language reference that `help()` shows, topic by topic: `{"text": ...}`."""
    from pydoc_data.topics import topics

    seen: dict[str, None] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            text = " ".join(paragraph.split())
            if len(text) >= SHORTEST_PARAGRAPH and paragraph[:1].isalpha():  # not indented: code is
                seen[text] = None
    write_rows(folder / "train.jsonl", ({"text": text} for text in seen))


def _ratings(kind: str) -> Iterator[tuple[float, str]]:
    """(mean rating, text) from the archive inside the source distribution; nothing is unpacked to disk."""
    resources = VADER.read("vaderSentiment-3.3.1/additional_resources/hutto_ICWSM_2014.tar.gz")
    table = inner_tar(resources, f"hutto_ICWSM_2014/{kind}_GroundTruth.txt")
    for line in table.decode("utf-8").splitlines():
        _, rating, text = line.split("\t")
        yield float(rating), text.strip()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
