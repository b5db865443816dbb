"""text-classification: pairs of texts, several classes, numbers; what labels mean, and where that is not clear."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import samples_text
import torch
from text_models import fit, plain_peft_difference

from pefttool import Row, Setting
from pefttool.api.errors import DataError
from pefttool.inference.predictor import Predictor, inference
from pefttool.setup.devices import Choice
from pefttool.testing import check_task
from pefttool_head.adapter import HeadAdapter
from pefttool_lora.adapter import LoraAdapter
from pefttool_text import text_columns
from pefttool_text.classification import TextClassification
from pefttool_text.label_kinds import KINDS, MULTI, REGRESSION, SINGLE

TASK = TextClassification()
VARIANTS = {"pairs": samples_text.pairs, "many labels": samples_text.many_labels, "ratings": samples_text.ratings}


def settle(labels: list[Any], **options: Any) -> Any:
    rows = [Row({"text": f"text {i}", "label": label}, line=i) for i, label in enumerate(labels)]
    return TASK.settle(rows, TASK.Options(**options))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_rows_keeps_the_contract(variant: str, tmp_path: Path) -> None:
    check_task(TASK, VARIANTS[variant](tmp_path), kind="encoder")


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["a", "b"], "single-label"),
        ([1, 2], "single-label"),
        ([True, False], "single-label"),
        (["1", "2"], "single-label"),
        ([["a"], []], "multi-label"),
        ([[1, 0, 0], [0, 0, 0]], "multi-label"),
        ([0.5, 2, -1.25], "regression"),
    ],
)
def test_what_labels_can_only_mean_is_recognised(labels: list[Any], kind: str) -> None:
    assert settle(labels).kind == kind
    assert settle(labels).pair_column is None


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([[1, 0, 0], [0, 0, 0], [0, 1, 1]], ("0", "1", "2")),
        ([[True, False], [False, True]], ("0", "1")),
        ([[1.0, 0.0, 0.0]], ("0", "1", "2")),
        ([[0], [1], [0, 1], []], ()),  # no list names a class twice: these are numbers of classes
        ([[1, 0, 0], [2]], ()),
        ([["0", "0"], ["1", "0"]], ()),
    ],
)
def test_lists_of_0_and_1_have_a_place_for_each_class(labels: list[Any], classes: tuple[str, ...]) -> None:
    assert settle(labels).classes == classes
    assert settle(labels, kind="multi-label").classes == classes


def test_classes_are_named_by_place_and_of_lists_of_0_and_1_only() -> None:
    options = settle([[1, 0, 1], [0, 0, 0]], classes=["a", "b", "c"])
    values = [{"text": "t", "label": label} for label in ([1, 0, 1], [0, 0, 0], [0, 1])]
    assert [TASK.classes(v, options) for v in values[:2]] == [("a", "c"), ()]
    assert TASK.labels([Row(v) for v in values[:2]], options) == ("a", "b", "c")
    assert "found 2 places of 0 and 1, expected 3 (a, b, c)" in str(TASK.check_row(values[2], options))
    with pytest.raises(DataError, match=r"task\.classes names the places of lists of 0 and 1.*single-label: drop it"):
        settle(["a", "b"], classes=["a", "b"])


@pytest.mark.parametrize(
    ("odd", "usual", "kind"),
    [
        ("b", ["a"], "multi-label"),
        (["b"], "a", "single-label"),
        (0.5, "a", "single-label"),
        ("high", 0.5, "regression"),
        (["high"], 0.5, "regression"),
        (["b"], 1, "single-label"),
    ],
)
def test_an_odd_label_among_many_is_a_bad_row(odd: Any, usual: Any, kind: str) -> None:
    options = settle([usual] * 9 + [odd])
    assert options.kind == kind
    assert f"found {odd!r}, expected" in str(TASK.check_row({"text": "a", "label": odd}, options))


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([1.0, 2.0], "1.0 may be a number or the number of a class"),
        (["1.5", "2"], "'1.5' may be a number or the name of a class"),
        ([0.5, "a"], "0.5 is a number, and others are not"),
        ([["a"], "b"], "some are lists, and some are not (<text>:0: ['a'], <text>:1: 'b')"),
    ],
)
def test_what_labels_could_mean_twice_is_asked_back(labels: list[Any], why: str) -> None:
    with pytest.raises(DataError) as caught:
        settle(labels)
    assert why in str(caught.value)
    advice = "say --task text-classification -o task.kind=single-label (or multi-label, regression)"
    assert str(caught.value).endswith(advice), "whole: a task that was recognised takes no options"
    assert settle(labels, kind="regression").kind == "regression"


def test_with_a_kind_other_labels_are_bad_rows() -> None:
    numbers = TASK.Options(kind="regression")
    assert TASK.check_row({"text": "a", "label": "3.5"}, numbers) is None  # as CSV has them
    assert "found 'good', expected a number" in str(TASK.check_row({"text": "a", "label": "good"}, numbers))
    assert "found nan, expected a number" in str(TASK.check_row({"text": "a", "label": math.nan}, numbers))
    lists = TASK.Options(kind="multi-label")
    assert "expected a list of class names" in str(TASK.check_row({"text": "a", "label": "good"}, lists))
    assert "found [None]" in str(TASK.check_row({"text": "a", "label": [None]}, lists))


def test_two_texts_in_one_row_are_two_texts_in_every_row() -> None:
    rows = [Row(values) for values in samples_text.pairs(Path())]
    options = TASK.settle(rows, TASK.Options())
    assert (options.text_column, options.pair_column) == ("premise", "hypothesis")
    lone = {"premise": "alone", "label": "yes"}
    assert "expected 'hypothesis'" in str(TASK.check_row(lone, options))
    assert "expected 'premise'" in str(TASK.check_input({"text": "alone"}, options))
    one = TASK.settle(rows, TASK.Options(text_column="premise"))
    assert one.pair_column is None and text_columns.texts(rows[0].values, one) == ("a dog runs",)
    named = TASK.Options(text_column="a", pair_column="b")
    assert text_columns.texts({"a": "x", "b": "y", "text": "z"}, named) == ("x", "y")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"premise": "a", "label": "x"}, "expected 'hypothesis' (name yours with -o task.pair_column=COLUMN) beside"),
        ({"hypothesis": "a", "label": "x"}, "expected 'premise' (name yours with -o task.text_column=COLUMN) beside"),
        ({"sentence2": "a", "label": "x"}, "expected 'sentence1'"),
        ({"words": "a", "label": "x"}, "expected one of 'text'"),
    ],
)
def test_a_row_with_half_a_pair_is_told_of_the_other_half(values: dict[str, Any], complaint: str) -> None:
    assert complaint in str(TASK.check_row(values, TASK.Options()))


class Tokenizer:
    """Counts words; says which text they come from."""

    def __call__(self, *texts: str, truncation: bool, max_length: int) -> dict[str, list[int]]:
        parts = [text.split() for text in texts]
        while sum(map(len, parts)) > max_length:
            max(parts, key=len).pop()
        ids = [len(word) for part in parts for word in part]
        return {"input_ids": ids, "token_type_ids": [i for i, part in enumerate(parts) for _ in part]}


def test_a_pair_is_encoded_as_a_pair() -> None:
    both = text_columns.encode(("a bb", "ccc"), Tokenizer(), 10)
    assert both == {"input_ids": [1, 2, 3], "length": 3, "truncated": False, "token_type_ids": [0, 0, 1]}
    cut = text_columns.encode(("a bb ccc", "dddd"), Tokenizer(), 3)
    assert cut["truncated"] and cut["token_type_ids"] == [0, 0, 1]
    assert "token_type_ids" not in text_columns.encode(("a bb",), Tokenizer(), 10)


def test_the_second_text_reaches_the_model() -> None:
    tuned = fit(TASK, samples_text.pairs(Path()), LoraAdapter(), steps=1)
    first = {"premise": "a dog runs", "hypothesis": "an animal moves"}
    scores = [p["scores"]["yes"] for p in tuned.predict([first, {**first, "hypothesis": "no animal moves"}])]
    assert abs(scores[0] - scores[1]) > 1e-4


def test_each_kind_has_the_loss_of_its_textbook() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.0, 0.5]])
    several = MULTI.loss(logits, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    softplus = torch.nn.functional.softplus
    assert float(several) == pytest.approx(float(softplus(torch.tensor([-2.0, -1.0, 0.0, 0.5])).sum() / 2))
    number = REGRESSION.loss(torch.tensor([[2.0], [0.0]]), torch.tensor([1.0, 3.0]))
    assert float(number) == pytest.approx(1 + 9)
    one = SINGLE.loss(logits, torch.tensor([0, 1]))
    assert float(one) == pytest.approx(float(torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])) * 2))


def test_metrics_have_known_values() -> None:
    given = [{"labels": ["a"]}, {"labels": ["a", "b"]}, {"labels": []}]
    found = MULTI.metrics([("a",), ("b",), ("b",)], given, ("a", "b"))
    # a: 1 right, 1 too many; b: 1 right, 1 missed.
    assert found == pytest.approx({"f1_micro": 4 / 6, "f1_macro": 2 / 3, "all_right": 1 / 3})
    values = REGRESSION.metrics([1.0, 2.0, 4.0], [{"value": v} for v in (2.0, 4.0, 3.0)], ())
    assert values == pytest.approx({"pearson": 0.32732684, "spearman": 0.5, "rmse": math.sqrt(2)})
    for labels, given in (([1.0, 2.0], [3.0, 3.0]), ([2.0, 2.0], [3.0, 4.0]), ([1.0], [3.0])):
        undefined = REGRESSION.metrics(labels, [{"value": v} for v in given], ())
        assert math.isnan(undefined.pop("pearson")) and math.isnan(undefined.pop("spearman"))
        assert math.isfinite(undefined["rmse"])


def test_a_class_that_is_neither_there_nor_predicted_is_not_in_the_mean() -> None:
    given = [{"label": "a"}, {"label": "b"}]
    assert SINGLE.metrics(["a", "b"], given, ("a", "b", "c"))["f1_macro"] == 1.0
    assert MULTI.metrics([("a",), ()], [{"labels": ["a"]}, {"labels": []}], ("a", "b"))["f1_macro"] == 1.0
    nothing = MULTI.metrics([()], [{"labels": []}], ("a", "b"))
    assert math.isnan(nothing["f1_micro"]) and math.isnan(nothing["f1_macro"]) and nothing["all_right"] == 1.0


def test_of_several_classes_an_unknown_one_is_not_passed_over() -> None:
    setting = Setting(settle([["a"], ["a", "b"]]), labels=("a", "b"))
    row = Row({"text": "text", "label": ["a", "zzz"]}, "rows.jsonl", 3)
    with pytest.raises(DataError, match=r"rows\.jsonl:3: class 'zzz' is not among the training rows' \(a, b\)"):
        TASK.encode(row, None, setting)


def test_the_metric_that_decides_is_the_kinds() -> None:
    judged = {k: TASK.judge(Setting(TASK.Options(kind=k))) for k in KINDS}
    assert judged == {
        "single-label": ("accuracy", "max"),
        "multi-label": ("f1_micro", "max"),
        "regression": ("pearson", "max"),
    }


def test_several_classes_are_learnt_and_predicted_from_one_half_on() -> None:
    tuned = fit(TASK, samples_text.many_labels(Path()), LoraAdapter())
    assert [p["labels"] for p in tuned.predict()] == [["cheap", "good"], ["good"], []]
    assert tuned.metrics()["f1_micro"] == 1.0
    assert tuned.model.config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("adapter", [LoraAdapter(), HeadAdapter()])
def test_numbers_are_learnt(adapter: Any) -> None:
    tuned = fit(TASK, samples_text.ratings(Path()), adapter, steps=200, rate=1e-2)
    assert [p["value"] for p in tuned.predict()] == pytest.approx([4.5, 0.25, 1.0], abs=0.2)
    assert tuned.model.config.num_labels == 1 and tuned.setting.labels == ()


MIXED = Choice(device="cpu", dtype="bfloat16", autocast="bfloat16", grad_scaler=False, reason="a test")
FAR_AWAY = [{"text": text, "label": 1000.5 + 2 * i} for i, text in enumerate(("a", "bb b", "ccc", "d d d", "e", "ff"))]


@pytest.mark.parametrize("adapter", [LoraAdapter(), HeadAdapter()])
def test_numbers_far_from_one_are_learnt_in_their_own_units(adapter: Any) -> None:
    tuned = fit(TASK, FAR_AWAY, adapter, steps=200, rate=1e-2)
    assert tuned.setting.fitted == pytest.approx({"mean": 1005.5, "std": math.sqrt(35 / 3)})
    assert tuned.losses[0] < 10 and tuned.losses[-1] < 0.1
    metrics = tuned.metrics()
    assert metrics["rmse"] < 1.5 and metrics["pearson"] > 0.9
    assert [p["value"] for p in tuned.predict()] == pytest.approx([row["label"] for row in FAR_AWAY], abs=3)


@pytest.mark.parametrize("adapter", [LoraAdapter(), HeadAdapter()])
def test_numbers_are_not_rounded_to_the_precision_that_a_run_computes_in(adapter: Any) -> None:
    tuned = fit(TASK, FAR_AWAY, adapter, steps=2)
    batch = {n: t for n, t in tuned.batch().items() if n != "labels"}
    with inference(tuned.model, MIXED):
        logits = tuned.model(**batch).logits
    assert logits.dtype == torch.float32 and bool((logits != logits.bfloat16()).any())
    given = Predictor(tuned.model, TASK, tuned.processor, tuned.setting, MIXED).predict(tuned.rows)
    assert len({p["value"] for p in given}) == len(FAR_AWAY)


def test_runs_of_before_numbers_were_scaled_answer_as_they_did() -> None:
    old = Setting(TASK.Options(kind="regression"))
    assert TASK.decode(torch.tensor([[2.5]]), old) == [{"value": 2.5}]
    assert REGRESSION.target(2.5, ()) == 2.5
    assert REGRESSION.fit([3.0, 3.0])["std"] == 1.0  # all alike: nothing to scale by


def test_numbers_that_float32_does_not_hold_are_bad_rows() -> None:
    for label in (1e308, "-3.5e38"):
        complaint = TASK.check_row({"text": "a", "label": label}, TASK.Options(kind="regression"))
        assert "expected a number that float32 holds" in str(complaint)
    large = {"text": "a", "label": 1e308}
    assert TASK.check_row(large, TASK.Options()) is not None
    assert TASK.recognise(list(large), [large, {"text": "b", "label": 0.5}]) is not None


def test_plain_peft_loads_what_was_saved(tmp_path: Path) -> None:
    saved = [(fit(TASK, rows(tmp_path), LoraAdapter(), steps=5), tmp_path / name) for name, rows in VARIANTS.items()]
    assert plain_peft_difference(saved, "AutoModelForSequenceClassification") <= 1e-5


def test_a_loader_of_mean_pooled_features_passes_on_which_text_is_which(tmp_path: Path) -> None:
    from tiny_models import run_without_pefttool

    tuned = fit(TASK, samples_text.pairs(tmp_path), HeadAdapter(), steps=3)
    tuned.save(tmp_path)
    batch = {n: t for n, t in tuned.batch().items() if n != "labels"}
    types = {"token_type_ids": (torch.arange(batch["input_ids"].shape[1]) > 4).long().expand_as(batch["input_ids"])}
    with torch.no_grad():
        expected = tuned.model(**batch, **types).logits
    torch.save({"inputs": {**batch, **types}, "expected": expected}, tmp_path / "expected.pt")
    printed = run_without_pefttool(f"""
import sys, torch
sys.path.insert(0, {str(tmp_path)!r})
from load_head import model
stored = torch.load({str(tmp_path / "expected.pt")!r})
with torch.no_grad():
    print(float((model(**stored["inputs"]).logits - stored["expected"]).abs().max()))
""")
    assert float(printed) <= 1e-5
