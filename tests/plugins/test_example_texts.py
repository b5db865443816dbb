"""Example data made of texts: what is taken from the pages and markup, and that the translator can be pretrained."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from pefttool_examples import faq, messages, translator, verses

PAGE = """
<h1>FAQ</h1><p>About this page.</p>
<h2>2.1. How do I <code>list</code> files?<a class="headerlink" href="#x">¶</a></h2>
<p>Use the command <em>ls</em>, which
shows names. It has   many options.</p><pre>$ ls</pre><p>A third sentence is here.</p>
<h2>Notes</h2><p>No question: no row, however long this text may be.</p>
<h3>Is it short?</h3><p>Yes.</p>
"""


def test_a_question_is_a_heading_and_its_answer_the_sentences_below() -> None:
    assert list(faq.answers(PAGE)) == [
        (
            "How do I list files?",
            "Use the command ls, which shows names. It has many options. A third sentence is here.",
        )
    ]


def test_answers_end_with_a_sentence_and_are_not_long() -> None:
    sentence = "This sentence has some forty characters. "
    ((_, answer),) = faq.answers(f"<h2>Why?</h2><p>{sentence * 30}</p>")
    assert answer == (sentence * (faq.LONGEST // len(sentence))).strip()


def test_what_stands_aside_is_no_part_of_a_verse(monkeypatch: pytest.MonkeyPatch) -> None:
    markup = (
        '<title type="chapter">Chapter 1</title><title canonical="true">A Psalm.</title> <w lemma="x">God</w>'
        '<note placement="foot">The Hebrew <i>word</i></note><w>created</w> <w>all</w> .'
    )

    class Bible:
        def get_iter(self, books: list[str], clean: bool) -> list[str]:
            return [markup]

    monkeypatch.setattr(verses, "_bible", lambda language: Bible())
    assert list(verses._verses("en", "Genesis")) == ["A Psalm. God created all."]


@pytest.mark.parametrize(
    ("en", "es", "pair"),
    [("a b", "c d", True), ("", "c", False), ("a " * 17, "b " * 17, False), ("a", "b " * 3, False)],
)
def test_long_empty_and_odd_pairs_are_left_out(en: str, es: str, pair: bool) -> None:
    assert verses._is_pair(en.split(), es.split()) is pair


def test_messages_are_every_pair_of_product_and_segment_once(tmp_path: Path) -> None:
    messages.make_messages(tmp_path)
    parts = {name: (tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("train", "eval")}
    asked = [json.loads(line)["instruction"] for part in parts.values() for line in part]
    assert len(set(asked)) == len(asked) == len(messages.PRODUCTS) * len(messages.SEGMENTS)
    assert len(parts["eval"]) == messages.EVAL_ROWS


def test_no_message_is_better_by_itself_and_no_product_is_on_both_sides(tmp_path: Path) -> None:
    """Which of two is preferred is decided by the segment that was asked for, and by nothing else."""
    messages.make_preferences(tmp_path)
    texts = [(tmp_path / f"{name}.jsonl").read_text() for name in ("train", "eval")]
    parts = [[json.loads(line) for line in text.splitlines()] for text in texts]
    closings = {segment: closing for segment, (_, _, closing) in messages.SEGMENTS.items()}
    for rows in parts:
        assert Counter(row["chosen"] for row in rows) == Counter(row["rejected"] for row in rows)
        for row in rows:
            assert row["chosen"].endswith(closings[row["prompt"].partition(" to ")[2].rstrip(".")])
    products = [{row["prompt"].partition(" to ")[0] for row in rows} for rows in parts]
    assert [len(found) for found in products] == [12, 6] and not products[0] & products[1]


def test_the_translator_learns_and_its_recipe_is_repeatable() -> None:
    pairs = [(f"the number {i} is here", f"el número {i} está aquí") for i in range(40)]
    tokenizer = translator.learn_vocabulary(text for pair in pairs for text in pair)
    assert tokenizer.decode(tokenizer("the number 3")["input_ids"], skip_special_tokens=True).strip() == "the number 3"
    rows = [tuple(tokenizer(text)["input_ids"] for text in pair) for pair in pairs]
    assert all(ids[-1] == tokenizer.eos_token_id for row in rows for ids in row)
    losses = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = translator.build(tokenizer)
            translator.train(model, rows, epochs=12)
        ids, labels = (translator._pad([row[i] for row in rows], value) for i, value in ((0, 0), (1, -100)))
        with torch.no_grad():
            losses.append(float(model.eval()(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss))
    # A vocabulary that few texts fill has 300 words; one that is guessed at random costs the logarithm of that.
    assert losses[0] == losses[1] < math.log(len(tokenizer)) - 1


def test_frequencies_alone_cost_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import unigram

    # Two of three tokens were new when they came: of 5 parts 2 are shared by all ten of the vocabulary.
    assert unigram._loss([1, 1, 2], [1, 3], 10) == pytest.approx(-(math.log(2.2 / 5) + math.log(0.2 / 5)) / 2)
    assert sum(math.exp(-unigram._loss([1, 1, 2], [token], 10)) for token in range(10)) == pytest.approx(1)
