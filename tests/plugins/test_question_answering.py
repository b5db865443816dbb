"""question-answering: windows over long passages, the best answer over all of them, SQuAD's own scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import samples_text
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import fit, plain_peft_difference

from pefttool import Row
from pefttool.models.pretrained import LocalPretrained
from pefttool.testing import check_task
from pefttool.testing.models import tiny_tokenizer
from pefttool_lora.adapter import LoraAdapter
from pefttool_text import answer_windows, squad_scores
from pefttool_text.answer_windows import Window
from pefttool_text.question_answering import QuestionAnswering

TASK, TOKENIZER = QuestionAnswering(), tiny_tokenizer()


def test_rows_without_answers_keep_the_contract(tmp_path: Path) -> None:
    check_task(TASK, samples_text.unanswerable(tmp_path), kind="encoder")


@settings(deadline=None)
@given(st.text(min_size=1, max_size=120), st.integers(10, 60), st.integers(0, 40), st.data())
def test_windows_show_every_character_of_the_passage(context: str, longest: int, stride: int, data: Any) -> None:
    found, cut = answer_windows.windows("who?", context, TOKENIZER, longest, stride)
    assert all(len(w.input_ids) == len(w.offsets) <= longest for w in found)
    assert cut == (len(found) > 1)
    shown = {i for w in found for place in w.offsets if place for i in range(*place)}
    assert shown == set(range(len(context)))
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, min(len(context), start + 4)))
    for window in found:
        positions = window.positions((start, end))
        if positions is not None:
            first, last = (window.offsets[i] for i in positions)
            assert first and last and (first[0], last[1]) == (start, end)
    held = {i for w in found if w.positions((start, end)) for i in range(start, end)}
    assert held or cut


def test_a_question_longer_than_the_model_reads_is_cut_without_a_word_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    logger = transformers.tokenization_utils_base.logger
    monkeypatch.setattr(logger, "warning", lambda text, *more, **how: said.append(text))
    transformers.BertConfig().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**json.loads((tmp_path / "tokenizer_config.json").read_text()), "model_max_length": 100})
    )
    tokenizer = LocalPretrained(tmp_path).processor(transformers.AutoTokenizer)
    assert tokenizer.model_max_length == 100
    assert answer_windows.windows("who " * 200, "a b c", tokenizer, 64, 16)[1]
    assert not said


def test_windows_overlap_by_the_stride() -> None:
    found, _ = answer_windows.windows("who?", "x" * 100, TOKENIZER, 44, 10)
    places = [[p for p in w.offsets if p] for w in found]
    assert [(p[0][0], p[-1][1]) for p in places] == [(0, 40), (30, 70), (60, 100)]


def test_a_long_question_leaves_room_for_the_passage() -> None:
    found, cut = answer_windows.windows("why " * 30, "because", TOKENIZER, 20, 5)
    assert cut and len(found) == 1 and sum(place is not None for place in found[0].offsets) == 7
    assert len(found[0].input_ids) == 17  # ten of the question's tokens


def test_training_takes_a_window_that_holds_the_answer_and_not_always_the_same_place() -> None:
    context = "x" * 60 + "here" + "x" * 60
    found, _ = answer_windows.windows("where?", context, TOKENIZER, 60, 40)
    chosen = [answer_windows.choose(found, (60, 64), seed, "where?", context) for seed in range(30)]
    assert all(c and c[0].positions((60, 64)) == c[1] for c in chosen)
    assert len({c[1] for c in chosen if c}) > 1
    assert chosen == [answer_windows.choose(found, (60, 64), seed, "where?", context) for seed in range(30)]
    assert answer_windows.choose(found, (0, 120), 0) is None
    window, positions = answer_windows.choose(found, None, 0) or (None, None)
    assert window is not None and positions == (window.null, window.null)


def window(offsets: list[tuple[int, int] | None]) -> Window:
    return Window(tuple(range(len(offsets))), None, tuple(offsets), 0)


def test_the_best_answer_is_the_best_of_all_windows() -> None:
    first = window([None, None, (0, 2), (3, 5), (6, 8)])
    second = window([None, None, (6, 8), (9, 12)])
    starts = torch.tensor([[0.0, 9.0, 1.0, 0.0, 0.0], [0.5, 9.0, 0.0, 4.0, 9.0]])  # 9: question, padding
    ends = torch.tensor([[0.0, 9.0, 1.0, 0.0, 0.0], [0.0, 9.0, 0.0, 3.0, 9.0]])
    best = answer_windows.best_answer([first, second], starts, ends, 30, False)
    assert best.span == (9, 12)
    everything = {
        (0, 2): 2.0,
        (0, 5): 1.0,
        (0, 8): 1.0,
        (3, 5): 0.0,
        (3, 8): 0.0,
        (6, 8): 0.0,
        (6, 12): 3.0,
        (9, 12): 7.0,
    }
    assert best.score == pytest.approx(float(torch.tensor(list(everything.values())).softmax(0).max()))
    starts[:, 0] = 6.0
    assert answer_windows.best_answer([first, second], starts, ends, 30, True).span == (9, 12)  # 7 against 6
    starts[:, 0] = torch.tensor([7.5, 8.0])
    assert answer_windows.best_answer([first, second], starts, ends, 30, True).span is None
    starts[0, 0] = 6.5
    assert answer_windows.best_answer([first, second], starts, ends, 30, True).span == (
        9,
        12,
    )  # the least of them counts


def test_an_answer_is_no_longer_than_asked_and_does_not_run_backwards() -> None:
    only = window([None, (0, 1), (1, 2), (2, 3)])
    starts, ends = torch.tensor([[0.0, 5.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.0, 0.0, 5.0]])
    assert answer_windows.best_answer([only], starts, ends, 3, False).span == (0, 3)
    assert answer_windows.best_answer([only], starts, ends, 2, False).span == (2, 3)
    assert answer_windows.best_answer([only], ends, starts, 3, False).span in {(0, 1), (2, 3)}


@pytest.mark.parametrize(
    ("given", "accepted", "exact", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1.0, 1.0),
        ("Eiffel Tower in Paris", ["Eiffel Tower"], 0.0, 2 * 0.5 * 1.0 / 1.5),
        ("Paris", ["London", "in Paris"], 0.0, 2 / 3),
        ("a the an", [""], 1.0, 1.0),
        ("", [], 1.0, 1.0),
        ("something", [], 0.0, 0.0),
        ("", ["something"], 0.0, 0.0),
        ("ab-c", ["abc"], 1.0, 1.0),
        ("x x y", ["x y y"], 0.0, 2 / 3),
    ],
)
def test_scores_are_squads(given: str, accepted: list[str], exact: float, f1: float) -> None:
    assert squad_scores.exact_match(given, accepted) == exact
    assert squad_scores.f1(given, accepted) == pytest.approx(f1)


@given(st.text(max_size=30), st.text(max_size=30))
def test_f1_is_a_share_and_symmetric(a: str, b: str) -> None:
    assert squad_scores.f1(a, [b]) == pytest.approx(squad_scores.f1(b, [a]))
    assert squad_scores.exact_match(a, [b]) <= squad_scores.f1(a, [b]) <= 1.0


def row(**changes: Any) -> dict[str, Any]:
    good = {"question": "Who?", "context": "Ada came.", "answers": {"text": ["Ada"], "answer_start": [0]}}
    return {**good, **changes}


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (row(answers={"text": ["Ada"], "answer_start": [1]}), "'Ada' at 1, where the context has 'da '"),
        (row(answers={"text": ["Ada"], "answer_start": [-1]}), "expected places in the context"),
        (row(answers={"text": [""], "answer_start": [0]}), "expected texts that are not empty"),
        (row(answers={"text": ["Ada"], "answer_start": []}), "both of one length"),
        (row(answers=["Ada"]), "column 'answers': found ['Ada']"),
        (row(context=" "), "column 'context': found ' ', expected text"),
        ({"question": "Who?"}, "expected 'question' and 'context'"),
    ],
)
def test_bad_rows_say_what_was_found(values: dict[str, Any], complaint: str) -> None:
    assert complaint in str(TASK.check_row(values, TASK.Options()))


def test_whether_there_may_be_no_answer_is_what_the_rows_say(tmp_path: Path) -> None:
    all_rows = [Row(values) for values in samples_text.unanswerable(tmp_path)]
    assert TASK.settle(all_rows, TASK.Options()).no_answer == "allowed"
    assert TASK.settle(all_rows[:3], TASK.Options()).no_answer == "auto"
    never = TASK.Options(no_answer="never")
    assert "which task.no_answer=never forbids" in str(TASK.check_row(all_rows[3].values, never))


@pytest.fixture(scope="module")
def tuned() -> Any:
    return fit(TASK, samples_text.unanswerable(Path()), LoraAdapter(), steps=120)


def test_answers_are_learnt_none_among_them(tuned: Any) -> None:
    assert [p["answer"] for p in tuned.predict()] == ["Ada", "nine", "Rome", ""]
    assert tuned.metrics() == {"exact_match": 1.0, "f1": 1.0, "loss": pytest.approx(tuned.losses[-1], abs=0.05)}
    first, *_, none = tuned.predict()
    assert (first["start"], first["end"]) == (0, 3) and (none["start"], none["end"]) == (None, None)
    assert 0.5 < first["score"] <= 1.0


def test_an_answer_is_found_in_whichever_window_it_is(tuned: Any) -> None:
    """Behind more of a passage than the model has room for, the answer still is words of that passage."""
    asked = {"question": "Who came?", "context": "Nobody ever said a word. " * 10 + "Ada came at nine."}
    windows, cut = answer_windows.windows(asked["question"], asked["context"], tuned.processor, 128, 64)
    assert cut and len(windows) > 2
    (answer,) = tuned.predict([asked])
    if answer["start"] is not None:
        assert asked["context"][answer["start"] : answer["end"]] == answer["answer"]


def test_plain_peft_loads_what_was_saved(tuned: Any, tmp_path: Path) -> None:
    fields = ("start_logits", "end_logits")
    assert plain_peft_difference([(tuned, tmp_path)], "AutoModelForQuestionAnswering", fields) <= 1e-5
