"""next-item: leave last out, catalogues, what is ranked, metrics by hand, and that it learns."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pefttool.api.errors import DataError, ModelError
from pefttool.api.facts import Facts
from pefttool.api.values import Row, Setting
from pefttool.config import recipe, registry
from pefttool.data import corpus
from pefttool.inference.predictor import Predictor
from pefttool.models.pretrained import LocalPretrained
from pefttool.setup.base import load_model
from pefttool.setup.loading import Loading
from pefttool.testing.bench import CPU
from pefttool.testing.models import model_folder
from pefttool_recsys import ranking
from pefttool_recsys.item_model import Catalogue, ItemModel
from pefttool_recsys.next_item import IGNORE, NextItem

TASK, REGISTRY = NextItem(), registry.build()


def users(*histories, **more) -> list[Row]:
    return [Row({"user": str(i), "items": list(items), **more}, "log", i) for i, items in enumerate(histories, 1)]


def arranged(train, held_out=None):
    found = TASK.arrange(train, held_out, 0.1, TASK.Options())
    assert found is not None
    return [r.values for r in found.train], [r.values for r in found.eval]


def test_every_user_s_last_item_is_held_out_and_never_trained_on():
    train, judged = arranged(users("abc", "d", "ef"))
    assert [r["items"] for r in train] == [["a", "b"], ["d"], ["e"]]
    assert [(r["items"], r["next"]) for r in judged] == [(["a", "b"], "c"), (["e"], "f")]
    assert all("next" not in row for row in train)


def test_rows_that_were_set_apart_are_judged_by_their_last_item_too():
    train, judged = arranged(users("abc"), [*users("de", "f"), *users("gh", next="i")])
    assert train == [{"user": "1", "items": ["a", "b", "c"]}]
    assert [(r["items"], r["next"]) for r in judged] == [(["d"], "e"), (["g", "h"], "i")]


def test_rows_that_say_what_came_next_are_dealt_out_as_usual():
    assert TASK.arrange(users("ab", next="c"), None, 0.1, TASK.Options()) is None


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=9), min_size=2, max_size=6))
def test_held_out_items_never_change_the_catalogue(tmp_path_factory, histories):
    folder = tmp_path_factory.mktemp("users")
    for name, lasts in (("one", "x"), ("two", "yz")):
        rows = ({"user": str(i), "items": [*items, lasts[i % len(lasts)]]} for i, items in enumerate(histories))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = (
        {"model": "none", "task": "next-item", "adapter": "lora", "data": {"train": str(p)}} for p in folder.iterdir()
    )
    one, two = (corpus.load(recipe.resolve(d, REGISTRY), REGISTRY) for d in documents)
    assert one.fitted == two.fitted == {"items": sorted({item for items in histories for item in items})}


def test_a_catalogue_is_the_model_s_items_and_those_that_are_new():
    class Items:
        all_special_tokens = ("<pad>",)

        def get_vocab(self):
            return {"<pad>": 0, "b": 2, "a": 1}

    config = type("Config", (), {"vocabulary": "items", "vocab_size": 3})
    found = Catalogue.of(config, Items(), ("b", "c"))
    assert (found.names, found.known) == (("a", "b", "c"), (1, 2))
    assert [found.index(item) for item in ("a", "c", "z")] == [1, 3, 0]
    of_words = Catalogue.of(type("Config", (), {"vocab_size": 3}), Items(), ("b", "c"))
    assert (of_words.names, of_words.known) == (("b", "c"), ())  # tokens of a language are no items


def test_items_that_a_model_of_items_does_not_know_are_told():
    config = type("Config", (), {"vocabulary": "items", "vocab_size": 9})  # "1" to "8"
    with pytest.raises(DataError, match=r"knows none of the 2 items of the training rows, such as 'a': .* like '1'"):
        Catalogue.of(config, None, ("a", "b"))
    assert Catalogue.of(config, None, ()).known == tuple(range(1, 9))  # a plan has no items yet
    setting = Setting(TASK.Options(), sequence_length=16)

    def said(*histories):
        catalogue = Catalogue.of(config, None, sorted({str(item) for items in histories for item in items}))
        return TASK.noted([], [TASK.encode(row, catalogue, setting) for row in users(*histories)], setting)

    assert said("123", "45678") == ()
    assert said("123", "ab4") == (
        "2 of the 6 items of held-out rows are not among the 8 that the model knows: what follows them is"
        " learnt from the training rows alone; see that items are called as the model calls them",
    )
    words = Catalogue.of(type("Config", (), {"vocab_size": 3}), None, ("a", "b"))
    assert TASK.noted([], [TASK.encode(users("ab")[0], words, setting)], setting) == ()


def loaded(rows: list[Row], **options):
    setting = Setting(TASK.Options(**options), fitted=TASK.fit(rows, TASK.Options()), sequence_length=16)
    read = load_model(Loading(model_folder("decoder"), TASK, setting, None, Facts(architecture=""), "cpu", "float32"))
    model, catalogue = read.model, read.processor
    return model, catalogue, setting


def test_every_item_but_the_first_is_learnt_or_only_the_next():
    _, catalogue, setting = loaded(users("abcd"))
    every = TASK.encode(users("abc")[0], catalogue, setting)
    assert (every["items"], every["targets"], every["weight"]) == ([1, 2, 3], [2, 3, IGNORE], 2)
    only = TASK.encode(users("abc", next="d")[0], catalogue, setting)
    assert (only["items"], only["targets"], only["weight"]) == ([1, 2, 3], [IGNORE, IGNORE, 4], 1)
    unknown = TASK.encode(users("axc", next="y")[0], catalogue, setting)
    assert (unknown["items"], unknown["targets"]) == ([1, 0, 3], [IGNORE, IGNORE, 0])
    assert TASK.encode(users("a")[0], catalogue, setting)["weight"] == 0


def test_a_long_history_keeps_its_end_and_forgets_nothing_that_was_seen():
    model, catalogue, setting = loaded(users([str(i) for i in range(30)]))
    long = TASK.encode(users([str(i) for i in range(30)])[0], catalogue, setting)
    assert long["truncated"] and long["length"] == 16 and len(long["seen"]) == 30
    (answer,) = Predictor(model, TASK, catalogue, setting, CPU).predict(users([str(i) for i in range(25)]))
    assert sorted(answer["items"], key=int) == ["25", "26", "27", "28", "29"]  # all that is left


def test_nothing_that_was_seen_is_recommended_unless_asked_for():
    rows = users("abcdefgh", "hg")
    model, catalogue, setting = loaded(rows)
    first, second = Predictor(model, TASK, catalogue, setting, CPU).predict(users("abcdef", "gh"))
    assert set(first["items"]) == set("gh") and not set(second["items"]) & set("gh")
    assert sum(first["scores"]) == pytest.approx(1) and first["scores"] == sorted(first["scores"], reverse=True)
    model, catalogue, setting = loaded(rows, exclude_seen=False)
    assert set(Predictor(model, TASK, catalogue, setting, CPU).predict(users("abcdef"))[0]["items"]) == set("abcdefgh")


def test_scores_are_of_the_whole_catalogue():
    rows = users(range(40))
    model, catalogue, setting = loaded(rows)
    batch = TASK.collate([TASK.encode(users(range(20), next=30)[0], catalogue, setting)], catalogue, setting)
    with torch.no_grad():
        found = model(items=batch["items"], attention_mask=batch["attention_mask"])
        scores = found.scores(found.hidden[:, -1])[0]
        loss = TASK.loss(model.eval(), batch, setting)
    assert len(scores) == 41
    assert float(loss.sum) == pytest.approx(float(-scores.log_softmax(-1)[catalogue.index(30)]), rel=1e-5)
    names, best, _ = loss.outputs
    unseen = sorted(range(20, 40), key=lambda item: -float(scores[catalogue.index(item)]))
    assert [names[i - 1] for i in best[0].tolist()] == [str(item) for item in unseen[:10]]


def test_metrics_by_hand():
    found = ranking.ranks([["a", "b", "c"], ["a", "b"], ["c"]], ["c", "a", "z"])
    assert found == [2, 0, None]
    assert ranking.hit_rate(found, 10) == pytest.approx(2 / 3) and ranking.hit_rate(found, 2) == pytest.approx(1 / 3)
    assert ranking.ndcg(found, 10) == pytest.approx((1 / math.log2(4) + 1) / 3)
    setting = Setting(TASK.Options())
    rows = [*users("x", next="c"), *users("x")]  # the second has no answer, and counts in nothing
    metrics = TASK.metrics([{"items": ["c"]}, {"items": ["c"]}], rows, 0.5, setting)
    assert metrics == {"ndcg@10": 1.0, "hr@10": 1.0, "loss": 0.5}
    with pytest.raises(DataError, match="no held-out row has the column 'next'"):
        TASK.metrics([{"items": ["c"]}], users("x"), 0.5, setting)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"user": "1", "item": "a"}, "read with -o data.format=interactions"),
        ({"items": "abc"}, "column 'items': found 'abc', expected a list"),
        ({"items": ["a", 1.5]}, "expected a list of items"),
        ({"items": []}, "expected a list of items"),
        ({"items": ["a"], "next": ["b"]}, "column 'next': found ['b'], expected an item"),
    ],
)
def test_bad_rows_say_what_was_found(values, complaint):
    assert complaint in (TASK.check_row(values, TASK.Options()) or "")


def test_it_learns_what_follows_and_new_items_get_gradients():
    rows = users(*("abcdefghijklmnopqrst"[i : i + 6] for i in range(14)))
    model, catalogue, setting = loaded(rows)
    examples = [TASK.encode(row, catalogue, setting) for row in rows]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(60):
        loss = TASK.loss(model, TASK.collate(examples, catalogue, setting), setting)
        (loss.sum / loss.weight).backward()
        assert bool(model.head.new.grad.abs().sum(1).gt(0).all())
        optimizer.step()
        optimizer.zero_grad()
    answers = Predictor(model, TASK, catalogue, setting, CPU).predict(users("bcd", "ijk"))
    assert [answer["items"][0] for answer in answers] == ["e", "l"]


def test_an_encoder_is_refused():
    setting = Setting(TASK.Options(), fitted={"items": ["a", "b"]})
    with pytest.raises(ModelError, match=r"is no decoder .* that takes inputs_embeds"):
        ItemModel(torch.nn.Linear(2, 2), Catalogue.of(type("C", (), {"vocab_size": 3}), None, setting.fitted["items"]))


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_a_model_that_sees_what_comes_next_is_refused(kind):
    """A BERT takes all that a decoder takes."""
    source = LocalPretrained(model_folder(kind), abstract=True)
    with pytest.raises(ModelError, match=r"is no decoder .*: use a causal language model"):
        TASK.load(source, Setting(TASK.Options()))


class Known(torch.nn.Module):
    """A decoder that knows two items, and gives back what it was given."""

    class config:
        vocab_size, vocabulary = 3, "items"

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(3, 4)

    def get_input_embeddings(self):
        return self.table

    def forward(self, inputs_embeds, attention_mask, use_cache):
        return type("Out", (), {"last_hidden_state": inputs_embeds})()


def test_known_items_start_where_the_model_has_them_and_move_on_request():
    catalogue = Catalogue.of(Known.config, None, ("1", "new"))
    assert (catalogue.names, catalogue.known) == (("1", "2", "new"), (1, 2))
    moving, still = ItemModel(Known(), catalogue, True), ItemModel(Known(), catalogue)
    assert {n for n, _ in moving.head.named_parameters()} == {"bias", "new", "moved"}
    assert {n for n, _ in still.head.named_parameters()} == {"bias", "new"}
    torch.testing.assert_close(moving.vectors()[1:3], moving.backbone.table.weight[1:])
    assert not moving.vectors()[0].any()
    found = moving(torch.tensor([[1, 3]]), torch.tensor([[1, 1]]))
    found.scores(found.hidden[0]).sum().backward()
    assert bool(moving.head.moved.grad.abs().sum(1).gt(0).all())
