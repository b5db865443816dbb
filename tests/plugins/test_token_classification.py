"""token-classification: which token has a word's tag, which words are an entity, what is said of words cut off."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import samples_text
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from text_models import fit, plain_peft_difference

from pefttool import Row, Setting
from pefttool.api.errors import DataError, ModelError
from pefttool.api.values import Loaded
from pefttool.cli.group import cli
from pefttool.config import registry as registries
from pefttool.data import corpus
from pefttool.data.rows import choose_format
from pefttool.testing import check_task
from pefttool_head.adapter import HeadAdapter
from pefttool_lora.adapter import LoraAdapter
from pefttool_text import encoder, tagging
from pefttool_text.batching import IGNORE
from pefttool_text.tagging import Entity
from pefttool_text.token_classification import TokenClassification

TASK = TokenClassification()
TAGS = st.sampled_from(["O", "B-a", "I-a", "B-geo-loc", "I-geo-loc"])
WORDS = st.lists(st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=6), min_size=1, max_size=8)


def test_other_rows_keep_the_contract_too(tmp_path: Path) -> None:
    check_task(TASK, samples_text.parts_of_speech(tmp_path), kind="encoder")


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-a I-a O B-a", [Entity("a", 0, 2), Entity("a", 3, 4)]),
        ("B-a B-a", [Entity("a", 0, 1), Entity("a", 1, 2)]),
        ("O I-a I-b", [Entity("a", 1, 2), Entity("b", 2, 3)]),  # as conlleval has it
        ("B-geo-loc I-geo-loc", [Entity("geo-loc", 0, 2)]),
        ("O O", []),
    ],
)
def test_entities_are_read_from_tags(tags: str, found: list[Entity]) -> None:
    assert tagging.entities(tags.split()) == found


def test_a_word_without_a_tag_ends_an_entity() -> None:
    assert tagging.entities(["B-a", None, "I-a"]) == [Entity("a", 0, 1), Entity("a", 2, 3)]


@given(st.lists(TAGS, max_size=12))
def test_entities_do_not_overlap_and_leave_nothing_out(tags: list[str]) -> None:
    found = tagging.entities(tags)
    assert all(a.end <= b.start for a, b in pairwise(found))
    covered = {i for e in found for i in range(e.start, e.end)}
    assert covered == {i for i, tag in enumerate(tags) if tag != "O"}
    assert all(tags[i].partition("-")[2] == e.type for e in found for i in range(e.start, e.end))


def test_scores_are_those_of_seqeval() -> None:
    """What seqeval 1.2.2 computes of these; 3,000 random sentences were compared, too, when this was written."""
    truth = [["B-per", "I-per", "O", "B-loc", "I-loc", "O"], ["O", "B-per", "O", "I-loc"]]
    given = [["B-per", "I-per", "O", "B-loc", "O", "O"], ["B-per", "B-per", "O", "I-loc"]]
    found = tagging.scores(truth, given, "bio")
    assert found == pytest.approx({"precision": 0.6, "recall": 0.75, "f1": 2 / 3, "accuracy": 0.8})
    assert tagging.scores(truth, truth, "bio")["f1"] == 1.0
    missed = tagging.scores([["B-a"]], [["O"]], "bio")
    assert missed == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": 0.0}
    none = tagging.scores([["O"]], [["O"]], "bio")
    assert none.pop("accuracy") == 1.0 and len(none) == 3 and all(map(math.isnan, none.values()))
    assert tagging.scores([["NOUN", "VERB"]], [["NOUN", None]], "plain") == {"accuracy": 0.5}


@given(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=12))
def test_scores_are_shares(both: list[tuple[str, str]]) -> None:
    found = tagging.scores([[a for a, _ in both]], [[b for _, b in both]], "bio")
    if all(tag == "O" for pair in both for tag in pair):
        assert math.isnan(found["f1"])
        return
    assert all(0.0 <= value <= 1.0 for value in found.values())
    swapped = tagging.scores([[b for _, b in both]], [[a for a, _ in both]], "bio")
    assert (found["precision"], found["f1"]) == (swapped["recall"], swapped["f1"])


@given(WORDS, st.booleans())
def test_a_words_first_token_is_found(words: list[str], spaces: bool) -> None:
    """Every character is a token here; with `spaces` the one before a word belongs to its first token."""
    text = " ".join(words)
    starts = [sum(len(w) + 1 for w in words[:i]) for i in range(len(words))]
    offsets = [(0, 0)]
    for at, character in enumerate(text):
        if not spaces or character != " ":
            offsets.append((at - 1 if spaces and at in starts and at else at, at + 1))
    first = tagging.first_tokens(words, [*offsets, (0, 0)])
    assert [offsets[token or 0][1] - 1 for token in first] == starts


def test_a_word_without_tokens_has_none() -> None:
    assert tagging.first_tokens(["a", "\u200d", "bc"], [(0, 0), (0, 1), (4, 6), (0, 0)]) == [1, None, 2]
    assert tagging.first_tokens(["a", "bc", "d"], [(0, 1), (2, 4)]) == [0, 1, None]  # cut off


def test_schemes_are_told_apart() -> None:
    assert tagging.scheme_of({"O", "B-a", "I-a"}) == "bio"
    assert tagging.scheme_of({"NOUN", "I"}) == "plain"
    assert tagging.scheme_of({"O"}) == "plain"
    assert tagging.scheme_of({"O", "B-a", "E-a", "S-a"}) is None
    assert tagging.tag_names({"O", "B-b", "I-a"}, "bio") == ("O", "B-a", "I-a", "B-b", "I-b")
    bioes = [Row({"tokens": ["x", "y"], "tags": ["B-a", "E-a"]})]
    with pytest.raises(DataError, match=r"<text>:\d+: tag 'E-a' is of another scheme.*-o task.scheme=plain"):
        TASK.settle(bioes, TASK.Options())
    assert TASK.settle(bioes, TASK.Options(scheme="plain")).scheme == "plain"


@pytest.mark.parametrize("odd", ["i-PER", "X-PER", "B-", "PER"])
def test_a_mistyped_tag_does_not_make_all_of_them_plain(odd: str, tmp_path: Path) -> None:
    """Accuracy over words, of which nearly all are outside, would look well, and say nothing of entities."""
    rows = [{"tokens": ["Ada", "L", "lives"], "tags": ["B-PER", "I-PER", "O"]}] * 9
    rows.append({"tokens": ["Ada", "L"], "tags": ["B-PER", odd]})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    result = CliRunner().invoke(cli, ["data", "check", str(path)])
    said = f"{path}:10: column 'tags': found {odd!r}, expected O, B-type or I-type"
    assert said in result.output and "-o task.scheme=plain" in result.output and result.exit_code == 1
    assert TASK.settle([Row(row) for row in rows], TASK.Options(scheme="plain")).scheme == "plain"


@pytest.mark.parametrize(
    ("lines", "tagged"),
    [
        (["Ada\tB-PER", "ran\tO", "", "Bob\tB-PER"], True),
        ([*["Ada\tB-PER", "ran\tO", ""] * 9, "L\ti-PER"], True),
        ([*["Ada\tB-PER", "ran\tO", ""] * 9, "Bob", "L\tI-PER"], True),
        (["Ada\tB-PER", "L\tE-PER", "Cy\tS-PER"], True),
        (["word\ttag", "Ada\tB-PER", "ran\tO", "Bob\tB-PER"], False),
        (["text\tlabel", "one\tgood", "two\tbad"], False),
        (["one\tgood", "two\tbad", "three\tbad"], False),
        (["a film", "B-movies are", "the S-Bahn"], False),
    ],
)
def test_words_and_tags_between_tabs_are_no_table(lines: list[str], tagged: bool, tmp_path: Path) -> None:
    """Taken for one the first word would name a column, and the sentences would be gone."""
    path = tmp_path / "rows.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert choose_format(path, registries.build())[0].name == ("conll" if tagged else "csv")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"tokens": "a b", "tags": ["O"]}, "column 'tokens': found 'a b', expected a list of words"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "word 1 is ' '"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "found 1 tags, expected 2"),
        ({"tokens": ["a"], "tags": [None]}, "expected a list of tags"),
        ({"tokens": ["a"]}, "-o task.tags_column=COLUMN"),
        ({"text": "a"}, "-o task.words_column=COLUMN"),
    ],
)
def test_bad_rows_say_what_was_found(values: dict[str, Any], complaint: str) -> None:
    assert complaint in str(TASK.check_row(values, TASK.Options()))


def test_in_bio_a_plain_tag_is_a_bad_row() -> None:
    row = {"tokens": ["a"], "ner_tags": ["PER"]}
    assert "found 'PER', expected O, B-type or I-type" in str(TASK.check_row(row, TASK.Options(scheme="bio")))


def test_a_tenth_is_held_out_whatever_types_meet_in_a_sentence() -> None:
    options, types = TASK.Options(scheme="bio"), [f"type{i}" for i in range(8)]
    draws = random.Random(0)
    tags = [[f"B-{name}" for name in draws.sample(types, draws.randint(0, 4))] + ["O"] for _ in range(400)]
    rows = [Row({"tokens": [f"w{i}"] * len(t), "tags": t}, "rows", i) for i, t in enumerate(tags)]
    train, held_out = corpus.split(
        rows, 0.1, 0, lambda row: TASK.stratum(row.values, options), lambda row: TASK.classes(row.values, options)
    )
    assert 36 <= len(held_out) <= 44
    known = {name for row in train for name in TASK.classes(row.values, options)}
    assert known.issuperset(name for row in held_out for name in TASK.classes(row.values, options))


@pytest.fixture(scope="module")
def tuned() -> Any:
    return fit(TASK, samples_text.entities(Path()), LoraAdapter(), steps=80)


def test_entities_are_learnt(tuned: Any) -> None:
    assert tuned.metrics()["f1"] == 1.0
    found = tuned.predict()[2]["entities"]
    assert [(e["type"], e["words"], e["start"], e["end"]) for e in found] == [
        ("person", ["Mary", "Somerville"], 3, 5),
        ("place", ["Ockham", "Park"], 6, 8),
    ]
    assert all(0.5 < e["score"] <= 1.0 for e in found)


def test_every_word_and_nothing_else_reaches_the_loss(tuned: Any) -> None:
    example = tuned.examples[0]
    labels = [label for label in example["labels"] if label != IGNORE]
    assert [tuned.setting.labels[i] for i in labels] == ["B-person", "I-person", "O"]
    batch = tuned.batch()
    before = float(TASK.loss(tuned.model, batch, tuned.setting).sum.detach())
    for row, position in (batch["labels"] != IGNORE).nonzero().tolist():
        changed = batch["labels"].clone()
        changed[row, position] = (changed[row, position] + 1) % len(tuned.setting.labels)
        after = float(TASK.loss(tuned.model, {**batch, "labels": changed}, tuned.setting).sum.detach())
        assert abs(after - before) > 1e-4


def test_words_that_are_cut_off_are_said_to_be(tuned: Any) -> None:
    words = ["word"] * 40  # a token for every character: 128 of them are 25 words and a bit
    (answer,) = tuned.predict([{"tokens": words}])
    assert len(answer["tags"]) == len(answer["scores"]) == 40
    assert None not in answer["tags"][:26] and set(answer["tags"][26:]) == {None}
    assert set(answer["scores"][26:]) == {None}
    row = Row({"tokens": words, "tags": ["O"] * 40})
    assert TASK.encode(row, tuned.processor, tuned.setting)["truncated"]
    assert TASK.metrics([answer], [row], 0.1, tuned.setting)["accuracy"] <= 26 / 40


def test_plain_text_is_taken_word_by_word(tuned: Any) -> None:
    (answer,) = tuned.predict([{"text": "in  Rome"}])
    assert answer["tags"] == ["O", "B-place"]


def test_plain_tags_are_judged_by_accuracy() -> None:
    tuned = fit(TASK, samples_text.parts_of_speech(Path()), HeadAdapter(), steps=150, rate=1e-2)
    assert TASK.judge(tuned.setting) == ("accuracy", "max")
    assert tuned.metrics()["accuracy"] > 0.8
    assert "entities" not in tuned.predict()[0] and set(tuned.metrics()) == {"accuracy", "loss"}


def test_plain_peft_loads_what_was_saved(tuned: Any, tmp_path: Path) -> None:
    assert plain_peft_difference([(tuned, tmp_path)], "AutoModelForTokenClassification") <= 1e-5


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="where in the text a token stands"):
        encoder.require_offsets(TASK, Loaded(torch.nn.Linear(1, 1), Slow()))
