"""tabular-classification: what columns are, what a row becomes, class weights, metrics, uplift, and that it learns."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pefttool.api.errors import DataError, ModelError
from pefttool.api.facts import Facts
from pefttool.api.values import Row, Setting
from pefttool.config import recipe, registry
from pefttool.data import corpus
from pefttool.export import held_out
from pefttool.export.reload import Reloaded
from pefttool.inference.predictor import Predictor
from pefttool.models.pretrained import LocalPretrained
from pefttool.setup.base import load_model
from pefttool.setup.loading import Loading
from pefttool.testing.bench import CPU
from pefttool.testing.models import model_folder
from pefttool_series import tabular_columns as columns
from pefttool_series.tabular import TabularClassification
from pefttool_series.tabular_metrics import classification
from pefttool_series.tabular_model import ColumnTokens
from pefttool_series.uplift import auuc, qini

TASK, REGISTRY = TabularClassification(), registry.build()


def rows(*values: dict) -> list[Row]:
    return [Row(v, "rows.csv", i) for i, v in enumerate(values, 2)]


def fitted(given_rows: list[Row], **options):
    return TASK.fit(given_rows, TASK.Options(**options))


def features(values):
    return [name for name in values if name != "label"]


TABLE = rows(
    {"age": "20", "job": "clerk", "label": "no"},
    {"age": "30", "job": "miner", "label": "no"},
    {"age": "40", "job": "", "label": "yes"},
)


def test_columns_are_found_with_their_bins_and_categories():
    age, job = columns.fit(TABLE, features, bins=16)
    assert (age.name, age.edges, age.size) == ("age", (20.0, 30.0, 40.0), 3)
    assert (job.name, job.categories, job.size) == ("job", ("clerk", "miner"), 3)


def test_a_row_becomes_places_in_one_table_of_vectors():
    found = columns.fit(TABLE, features, bins=16)
    assert columns.place(found, {"age": 25, "job": "miner"}) == ([0, 4], [0.5, 1.0])
    assert columns.place(found, {"age": 40, "job": "clerk"}) == ([1, 3], [1.0, 1.0])
    assert columns.place(found, {"age": 55, "job": "clerk"}) == ([1, 3], [2.0, 1.0])  # beyond what was seen: no further
    assert columns.place(found, {"age": None, "job": "pilot"}) == ([2, 5], [1.0, 1.0])  # missing, unknown
    assert columns.place(found, {}) == ([2, 5], [1.0, 1.0])
    with pytest.raises(ValueError, match="column 'age': found 'old', expected a number"):
        columns.place(found, {"age": "old"})


def test_a_column_that_no_row_has_is_misspelt_and_a_value_that_one_lacks_is_missing():
    def said(*values: dict, **options) -> str | None:
        return TASK.check_given(rows(*values), TASK.Options(**options), known)

    known = fitted(TABLE)
    assert said({"age": "", "job": "clerk"}) is None
    assert said({"age": 3}, {"job": "clerk"}) is None
    assert said({"Age": 3, "Job": "clerk"}, {"Age": 3, "Job": "spy"}) == (
        "no row has the training rows' column 'age' (and 1 more): did you mean 'Age'? (found besides: Age, Job):"
        " name it so, or add it"
    )
    assert "'job': (found besides: label, wage)" in (said({"age": 3, "wage": 1, "label": "no"}) or "")
    assert said({"age": 3}, treatment_column="job") is None  # nobody has been treated yet
    known = fitted([*TABLE, *rows({"age": "50", "label": "no"})])
    assert columns.read(known)[1].optional and said({"age": 3}) is None


def test_held_out_rows_of_other_columns_are_refused(tmp_path):
    for name, (age, job) in {"train": ("age", "job"), "eval": ("Age", "Job")}.items():
        given_rows = ({age: i, job: "ab"[i % 2], "label": "xy"[i % 2]} for i in range(6))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given_rows))
    document = {"model": "none", "task": "tabular-classification", "adapter": "lora"}
    document["data"] = {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")}
    with pytest.raises(DataError, match=r"eval\.jsonl: no row has .* 'age' .* did you mean 'Age'"):
        corpus.load(recipe.resolve(document, REGISTRY), REGISTRY)


def test_rows_to_predict_of_other_columns_are_refused(tmp_path):
    setting = Setting(TASK.Options(), labels=("no", "yes"), fitted=fitted(TABLE))
    loaded = Reloaded(torch.nn.Identity(), TASK, None, setting, CPU, tmp_path)
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text("age,job\n3,clerk\n,spy\n")
    bad.write_text("Age,Job\n3,clerk\n,spy\n")
    assert len(held_out.given(good, REGISTRY, loaded, TASK.check_input, None)) == 2
    with pytest.raises(DataError, match=r"bad\.csv: no row has .* 'age' .* did you mean 'Age'"):
        held_out.given(bad, REGISTRY, loaded, TASK.check_input, None)


@pytest.mark.parametrize(
    ("given_columns", "complaint"),
    [
        (("age", "income"), r"knows none of the training rows' columns \(age, income\), but f1, f2, paid: "),
        (("f1", "Paid"), r"'Paid': did you mean 'paid'\? .* --task tabular-classification -o 'task\.ignore=Paid'"),
        (("f1", "age", "sex"), r"'age' \(and 1 more\): \(its columns: f1, f2, paid\).* 'task\.ignore=\[age, sex\]'"),
        (("f1", "f2"), None),  # what it knows beyond the rows is missing in them
    ],
)
def test_a_column_that_a_model_of_another_table_has_not_is_never_left_out_silently(given_columns, complaint):
    own = {"columns": [{"name": name, "edges": [0, 1, 2]} for name in ("f1", "f2", "paid")]}
    given_rows = rows(*({**dict.fromkeys(given_columns, i), "label": "xy"[i % 2]} for i in range(4)))
    setting = Setting(TASK.Options(), labels=("x", "y"), fitted=fitted(given_rows))
    source = LocalPretrained(model_folder("encoder"), abstract=True)
    source.config.table = own
    source.config.vocab_size = 9
    if complaint is None:
        assert [c.name for c in TASK.load(source, setting).processor.columns] == ["f1", "f2", "paid"]
        return
    with pytest.raises(DataError, match=complaint):
        TASK.load(source, setting)


def test_a_column_that_never_varies_is_left_out():
    constant = rows({"a": 1, "b": 2, "label": "x"}, {"a": 1, "b": 3, "label": "y"})
    assert [c.name for c in columns.fit(constant, features, 4)] == ["b"]
    with pytest.raises(DataError, match="no column of the 2 training rows varies"):
        columns.fit(rows({"a": 1}, {"a": 1}), features, 4)


def test_a_column_of_names_is_refused_and_so_is_a_word_among_numbers():
    named = rows(*({"name": f"customer {i}", "n": i} for i in range(200)))
    with pytest.raises(
        DataError,
        match=r"rows.csv:2: column 'name': 200 different texts.* --task tabular-classification -o task.ignore=name",
    ):
        columns.fit(named, features, 4)
    mixed = rows({"n": 1, "m": 1}, {"n": "2", "m": 2}, {"n": "many", "m": 3})
    with pytest.raises(DataError, match=r"rows.csv:4: column 'n': found 'many', expected a number as in most rows"):
        columns.fit(mixed, features, 4)


numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(numbers, min_size=2, max_size=50), st.integers(1, 20), numbers)
def test_bins_are_ascending_and_every_number_has_a_place(values, bins, value):
    found = columns.fit(rows(*({"x": v, "label": "a"} for v in [*values, max(values) + 1e30])), features, bins)
    (column,) = found
    assert 1 <= column.bins <= bins
    assert list(column.edges) == sorted(set(column.edges))
    index, fraction = column.place(value)
    assert 0 <= index < column.bins and -1 <= fraction <= 2
    assert columns.read({"columns": json.loads(json.dumps([column.as_json()]))}) == (column,)


@given(st.lists(numbers, min_size=3, max_size=30, unique=True), st.data())
def test_encoding_keeps_the_order_of_numbers(values, data):
    (column,) = columns.fit(rows(*({"x": v} for v in values)), features, 8)
    low, high = sorted(data.draw(st.lists(st.sampled_from(values), min_size=2, max_size=2, unique=True)))
    (i, f), (j, g) = column.place(low), column.place(high)
    assert i + f <= j + g


@settings(max_examples=15, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=20), st.sampled_from(["clerk", "spy", ""]))
def test_held_out_rows_never_change_what_was_found(tmp_path_factory, held_out, job):
    folder = tmp_path_factory.mktemp("tables")
    train = ({"age": a, "job": j, "label": c} for a, j, c in zip(range(20), "ab" * 10, "xy" * 10, strict=True))
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    judged = ({"age": a, "job": job, "label": "x"} for a in held_out)
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    document = {"model": "none", "task": "tabular-classification", "adapter": "lora", "data": {"train": str(folder)}}
    found = corpus.load(recipe.resolve(document, REGISTRY), REGISTRY)
    assert len(found.eval) == len(held_out)
    assert found.fitted == TASK.fit(found.train, TASK.Options())
    assert found.fitted["counts"] == [10, 10]


def test_vectors_add_up_over_bins_and_only_those_of_the_value_get_a_gradient():
    tokens = ColumnTokens([4, 3], [True, False], 8, 0.02, "cpu")
    value, columns_ = tokens.values, tokens.columns
    out = tokens(torch.tensor([[2, 5], [3, 6]]), torch.tensor([[0.25, 1.0], [1.0, 1.0]]))
    torch.testing.assert_close(out[0, 0], value[0] + value[1] + 0.25 * value[2] + columns_[0])
    torch.testing.assert_close(out[0, 1], value[5] + columns_[1])  # a category adds up nothing
    torch.testing.assert_close(out[1], columns_.detach())  # what is missing says nothing at first
    out[0].sum().backward()
    assert value.grad is not None and value.grad[:, 0].tolist() == [1, 1, 0.25, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"a": 1, "b": 2}, "expected one of label, class, target, outcome"),
        ({"a": 1, "b": 2, "label": 0.5}, "column 'label': found 0.5, expected a class"),
        ({"a": 1, "b": [2], "label": "x"}, "column 'b': found [2], expected a number or a category"),
        ({"a": 1, "b": math.inf, "label": "x"}, "column 'b': found inf, expected a finite number"),
        ({"a": 1, "b": "a sentence of more than six words", "label": "x"}, "not 7 words"),
        ({"a": 1, "label": "x"}, "expected at least two"),
    ],
)
def test_bad_rows_say_what_was_found(values, complaint):
    assert complaint in (TASK.check_row(values, TASK.Options()) or "")


def test_only_tables_are_recognised():
    def recognised(**values):
        return TASK.recognise(list(values), [values]) is not None

    assert recognised(age="41", balance="-3.5", job="clerk", label="no")
    assert not recognised(age="41", balance="-3.5")
    assert not recognised(age="41", job="clerk", label="no")  # one column of numbers is no table yet
    assert not recognised(text="good", stars=5, length=4, label="pos")
    assert not recognised(premise="a man sleeps", hypothesis="he is awake", label="no")
    assert not recognised(a=1, b=2, values=[1.0, 2.0], label="no")
    assert not recognised(a=1, b=2, note="a sentence of more than six words", label="no")


def test_balanced_weights_make_classes_count_the_same_and_rows_one_on_average():
    table = rows(*({"a": i, "b": -i, "label": "yes" if i % 10 == 0 else "no"} for i in range(50)))
    options = TASK.Options(class_weights="balanced")
    setting = Setting(options, labels=("no", "yes"), fitted=TASK.fit(table, options))
    no, yes = TASK._weights(setting)
    assert (45 * no, 5 * yes) == pytest.approx((25, 25))
    assert setting.fitted["positive"] == "yes"
    assert TASK._weights(Setting(TASK.Options(), labels=("no", "yes"), fitted=setting.fitted)) == [1.0, 1.0]


def scored(*scores: float) -> list[dict]:
    return [{"label": "yes" if s > 0.5 else "no", "scores": {"no": 1 - s, "yes": s}} for s in scores]


def test_metrics_of_two_classes_are_about_the_positive_one():
    found = classification(["yes", "no", "yes", "no"], scored(0.9, 0.8, 0.7, 0.1), ("no", "yes"), "yes")
    assert found["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["auroc"] == pytest.approx(0.75)
    assert found["f1"] == pytest.approx(0.8) and found["accuracy"] == 0.75
    other = classification(["yes", "no", "yes", "no"], scored(0.9, 0.8, 0.7, 0.1), ("no", "yes"), "no")
    assert other["auprc"] == pytest.approx((1 + 2 / 3) / 2) and other["f1"] == pytest.approx(2 / 3)


def test_metrics_of_more_classes_are_means_over_those_that_there_are():
    predictions = [
        {"label": c, "scores": {"a": s, "b": t, "c": 1 - s - t}} for c, s, t in (("a", 0.8, 0.1), ("a", 0.6, 0.3))
    ]
    found = classification(["a", "b"], predictions, ("a", "b", "c"), "a")
    assert found["auprc"] == 1.0 and found["auroc"] == 1.0 and "f1" not in found
    assert "auroc" not in classification(["a", "a"], predictions, ("a", "b", "c"), "a")
    # c is neither there nor predicted: b, which is there, is all that is wrong.
    assert found["f1_macro"] == pytest.approx((2 / 3 + 0) / 2)


def test_metrics_of_a_class_that_is_not_there_are_no_numbers():
    found = classification(["no", "no"], scored(0.4, 0.1), ("no", "yes"), "yes")
    assert math.isnan(found["auprc"]) and math.isnan(found["f1"]) and "auroc" not in found
    assert found["f1_macro"] == found["accuracy"] == 1.0
    assert classification(["no", "no"], scored(0.6, 0.1), ("no", "yes"), "yes")["f1"] == 0.0  # one was predicted


def test_uplift_curves_by_hand():
    # In order of predicted uplift: treated yes, untreated no, treated no, untreated yes.
    uplift, treated, responded = [0.4, 0.3, 0.2, 0.1], [True, False, True, False], [True, False, False, True]
    # Qini at 1..4 people: 1, 1 - 0, 1 - 0, 1 - 1 = 1, 1, 1, 0; area 3 / 4 by trapezoids, less nothing, over 2 treated.
    assert qini(uplift, treated, responded) == pytest.approx((0.5 + 1 + 1 + 0.5) / 4 / 2)
    # Uplift curve: no untreated yet; (1 - 0) 2/4, (1/2 - 0) 3/4, (1/2 - 1/2) 1.
    assert auuc(uplift, treated, responded) == pytest.approx((0.25 + (0.5 + 0.375) / 2 + 0.375 / 2) / 4)
    reverse = qini([-u for u in uplift], treated, responded)
    assert reverse < 0 < qini(uplift, treated, responded)
    assert qini([0.5] * 4, treated, responded) == auuc([0.5] * 4, treated, responded) == 0.0
    assert math.isnan(qini(uplift, [True] * 4, responded)) and math.isnan(auuc(uplift, [True] * 4, responded))


@given(st.integers(0, 10_000))
def test_a_random_order_has_no_uplift_on_average(seed):
    draws = random.Random(seed)
    people = [(draws.random(), draws.random() < 0.5, draws.random() < 0.3) for _ in range(400)]
    assert abs(qini(*zip(*people, strict=True))) < 0.12 and abs(auuc(*zip(*people, strict=True))) < 0.06


def loaded(given_rows: list[Row], kind: str = "encoder", **options):
    chosen = TASK.Options(**options)
    setting = Setting(chosen, labels=TASK.labels(given_rows, chosen), fitted=TASK.fit(given_rows, chosen))
    facts = Facts(architecture="")
    read = load_model(Loading(model_folder(kind), TASK, setting, None, facts, "cpu", "float32"))
    model, processor = read.model, read.processor
    return model, processor, setting


def interactions(count: int) -> list[Row]:
    """A class that no single column tells: whether two numbers have the same sign."""
    draws = random.Random(3)
    pairs = [(draws.uniform(-1, 1), draws.uniform(-1, 1)) for _ in range(count)]
    return rows(*({"a": a, "b": b, "label": "same" if a * b > 0 else "other"} for a, b in pairs))


def test_it_learns_what_no_single_column_tells():
    table = interactions(300)
    model, processor, setting = loaded(table)
    examples = [TASK.encode(row, processor, setting) for row in table]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draws = random.Random(0)
    model.train()
    for _ in range(90):
        loss = TASK.loss(model, TASK.collate(draws.sample(examples, 32), processor, setting), setting)
        (loss.sum / loss.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    predictions = Predictor(model, TASK, processor, setting, CPU).predict(table)
    found = TASK.metrics(predictions, table, 0.0, setting)
    assert found["auroc"] > 0.9


def test_every_class_and_every_column_reaches_the_loss():
    table = interactions(16)
    model, processor, setting = loaded(table)
    batch = TASK.collate([TASK.encode(row, processor, setting) for row in table], processor, setting)
    TASK.loss(model, batch, setting).sum.backward()
    assert bool(model.classifier.weight.grad.abs().sum(1).gt(0).all())
    assert bool(model.columns.columns.grad.abs().sum(1).gt(0).all())
    flipped = {**batch, "labels": 1 - batch["labels"]}
    with torch.no_grad():
        assert TASK.loss(model, flipped, setting).sum != TASK.loss(model, batch, setting).sum


def test_uplift_is_the_difference_that_treatment_makes():
    table = rows(*({"age": i, "sent": i % 2, "label": "yes" if i % 3 else "no"} for i in range(12)))
    model, processor, setting = loaded(table, treatment_column="sent", positive="yes")
    one = {"age": 5, "sent": 1}
    as_it_is, untreated = Predictor(model, TASK, processor, setting, CPU).predict([Row(one), Row({**one, "sent": 0})])
    assert as_it_is["uplift"] == pytest.approx(as_it_is["scores"]["yes"] - untreated["scores"]["yes"], abs=1e-5)
    assert as_it_is["uplift"] == pytest.approx(untreated["uplift"], abs=1e-6)
    unknown = Predictor(model, TASK, processor, setting, CPU).predict([Row({"age": 5, "sent": None, "shoes": "red"})])
    assert unknown[0]["uplift"] == pytest.approx(as_it_is["uplift"], abs=1e-5)
    found = TASK.metrics([as_it_is] * 12, table, 0.0, setting)
    assert found["qini"] == 0.0
    with pytest.raises(DataError, match="'posted' is no column"):
        fitted(table, treatment_column="posted")


def test_a_model_that_takes_no_vectors_is_refused():
    class Blind(torch.nn.Module):
        def forward(self, pixels):
            return pixels

    from pefttool_series.tabular_model import TabularModel

    with pytest.raises(ModelError, match="Blind takes no inputs_embeds"):
        TabularModel(Blind(), [2], [True], 2)


def test_a_column_to_ignore_that_is_none_is_told() -> None:
    rows = [Row({"age": i, "city": "a", "street": "b", "label": "yn"[i % 2]}, "rows.csv", i + 2) for i in range(4)]
    task = TabularClassification()
    assert task.settle(rows, task.Options(ignore=("city", "street"))).ignore == ("city", "street")
    with pytest.raises(DataError, match=r"task.ignore: the rows have no column 'City': did you mean 'city'\? \("):
        task.settle(rows, task.Options(ignore=("City",)))
    with pytest.raises(DataError, match=r"no column 'city,street': .*give several as -o 'task.ignore=\[A, B\]'"):
        task.settle(rows, task.Options(ignore=("city,street",)))
