"""chrF, BLEU and ROUGE: values known from their definitions and from other implementations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefttool_text.text_scores import rouge, scores

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "mat", "élan", "3"]), max_size=8).map(" ".join)


def test_rouge_gives_what_rouge_score_gives() -> None:
    """rouge-score 0.1.2, without stemming; the first pair is its README's."""
    found = rouge("The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog")
    assert found == pytest.approx({"rouge1": 0.7058823529, "rouge2": 0.2666666667, "rougeL": 0.5882352941})
    found = rouge("police killed the gunman", "police kill the gunman")
    assert found == pytest.approx({"rouge1": 0.75, "rouge2": 1 / 3, "rougeL": 0.75})


def test_rouge_counts_a_repeated_word_as_often_as_both_have_it() -> None:
    assert rouge("the the the", "the cat")["rouge1"] == pytest.approx(2 * 1 / 5)


def test_rouge_knows_words_of_any_script() -> None:
    assert rouge("El año pasó", "el año")["rouge1"] == pytest.approx(2 * 2 / 5)
    assert rouge("Это кот", "это кот")["rougeL"] == 1.0


def test_bleu_and_chrf_are_what_their_definitions_say() -> None:
    found = scores(["the cat is on the mat"], ["the cat sat on the mat"])
    # Of 6, 5, 4 and 3 n-grams 5, 3, 1 and 0 are right; the 0 of 3 counts as half of one.
    assert found["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25)
    # All of the answer's character n-grams are right, and 3 of 4, 2 of 3 and 1 of 2 were found; recall counts double.
    recall = (3 / 4 + 2 / 3 + 1 / 2) / 3
    assert scores(["abc"], ["abcd"])["chrf"] == pytest.approx(100 * 5 * recall / (4 + recall))


def test_only_what_is_asked_for_is_computed_besides_chrf() -> None:
    assert list(scores(["a"], ["a"], ("rouge",))) == ["chrf", "rouge1", "rouge2", "rougeL"]
    assert list(scores(["a"], ["a"], ())) == ["chrf"]


def test_languages_without_spaces_are_split_for_bleu() -> None:
    given_, expected = ["我喜欢看书和电影"], ["我喜欢看书和音乐"]
    assert scores(given_, expected, ("bleu",), "zh")["bleu"] > 40 > scores(given_, expected, ("bleu",), "en")["bleu"]


@given(a=WORDS, b=WORDS)
def test_rouge_is_symmetric_bounded_and_one_for_the_same_words(a: str, b: str) -> None:
    found = rouge(a, b)
    assert found == rouge(b, a)
    assert all(0 <= value <= 1 for value in found.values())
    assert found["rougeL"] <= found["rouge1"]
    assert rouge(a, a)["rougeL"] == (1.0 if a else 0.0)


@given(texts=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_scores_lie_between_nothing_and_a_hundred(texts: list[tuple[str, str]]) -> None:
    given_, expected = ([pair[i] for pair in texts] for i in (0, 1))
    assert all(0 <= value <= 100 + 1e-9 for value in scores(given_, expected).values())
