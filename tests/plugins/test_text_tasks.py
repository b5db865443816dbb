"""text-classification and causal-lm: what is theirs, how rows are read, what the loss counts."""

import math
from pathlib import Path

import pytest
import torch

from pefttool.api.errors import DataError, ModelError
from pefttool.api.values import Row, Setting
from pefttool.cli.run import _print
from pefttool.inference.prompts import takes_text, talks
from pefttool.run import Finished
from pefttool_text.batching import IGNORE, attention_mask, pad
from pefttool_text.causal_lm import CausalLM
from pefttool_text.classification import TextClassification
from pefttool_text.pooling import MeanPool, MeanPooled

#: Columns of a model's own: what is typed has none of those.
OTHER_COLUMNS = {"causal-lm": {"text_column": "body"}, "seq2seq": {"source_column": "question"}}
CLASSIFY, CONTINUE = TextClassification(), CausalLM()


def test_tasks_recognise_their_own_rows_only():
    labelled, plain = {"text": "a", "label": "x"}, {"text": "a"}
    assert CLASSIFY.recognise(list(labelled), [labelled]) == "columns 'text' (text) and 'label' (class)"
    assert CLASSIFY.recognise(list(plain), [plain]) is None
    assert CONTINUE.recognise(list(plain), [plain]) is not None
    assert CONTINUE.recognise(list(labelled), [labelled]) is None


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"words": "a", "label": "x"}, "found columns 'words', 'label'"),
        ({"text": 3, "label": "x"}, "column 'text': found 3"),
        ({"text": "  ", "label": "x"}, "expected text"),
        ({"text": "a"}, "-o task.label_column=COLUMN"),
        ({"text": "a", "label": None}, "column 'label': found None"),
        ({"text": "a", "label": math.nan}, "column 'label': found nan"),
    ],
)
def test_bad_rows_say_what_was_found(values, complaint):
    assert complaint in (CLASSIFY.check_row(values, CLASSIFY.Options()) or "")


def test_columns_are_mapped_by_name():
    options = CLASSIFY.Options(text_column="review", label_column="stars")
    rows = [
        Row({"review": "good", "stars": 5}),
        Row({"review": "bad", "stars": 10}),
        Row({"review": "meh", "stars": 9}),
    ]
    assert [CLASSIFY.check_row(r.values, options) for r in rows] == [None] * 3
    assert CLASSIFY.labels(rows, options) == ("5", "9", "10")  # numbers in the order of numbers
    assert CLASSIFY.check_row({"text": "a", "label": "x"}, options).startswith(
        "found columns 'text', 'label', expected 'review'"
    )


def test_one_class_is_no_classification():
    with pytest.raises(DataError, match="have 1 class"):
        CLASSIFY.labels([Row({"text": "a", "label": "x"})], CLASSIFY.Options())


def test_metrics_follow_the_labels():
    setting = Setting(CLASSIFY.Options(), labels=("no", "yes"))
    rows = [Row({"text": "t", "label": v}) for v in ("yes", "yes", "no", "no")]
    metrics = CLASSIFY.metrics([{"label": v} for v in ("yes", "no", "no", "no")], rows, 0.3, setting)
    assert metrics["accuracy"] == 0.75
    assert metrics["f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert metrics["loss"] == 0.3


def test_predictions_carry_label_names_and_probabilities():
    setting = Setting(CLASSIFY.Options(), labels=("no", "yes"))
    (one,) = CLASSIFY.decode(torch.tensor([[0.0, math.log(3.0)]]), setting)
    assert one["label"] == "yes"
    assert one["scores"] == pytest.approx({"no": 0.25, "yes": 0.75})


def test_padding_is_marked_by_the_mask_not_by_a_token():
    assert pad([[5], [6, 7, 8]], 9, multiple=4).tolist() == [[5, 9, 9, 9], [6, 7, 8, 9]]
    assert pad([[5], [6, 7, 8]], 9, multiple=8, most=5).tolist() == [[5, 9, 9, 9, 9], [6, 7, 8, 9, 9]]
    assert pad([[5], [6, 7, 8]], 9, multiple=8, most=2).tolist() == [[5, 9, 9], [6, 7, 8]]  # what is there is never cut
    assert pad([[5], [6, 7, 8]], 9).shape[1] == (8 if torch.cuda.is_available() else 3)
    assert attention_mask([[5], [6, 7, 8]], multiple=4).tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]


def test_mean_pooling_leaves_padding_out():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]]])
    assert MeanPool()(hidden, torch.tensor([[1, 1, 0]])).tolist() == [[2.0, 3.0]]
    assert MeanPool()(hidden, torch.tensor([[0, 0, 0]])).tolist() == [[0.0, 0.0]]


class Embedding(torch.nn.Module):
    class config:
        hidden_size = 4

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(10, 4)

    def forward(self, input_ids, attention_mask):
        return type("Out", (), {"last_hidden_state": self.table(input_ids)})()


def test_the_classifier_on_pooled_features_is_the_new_head():
    model = MeanPooled(Embedding(), 3)
    assert CLASSIFY.head_modules(model) == ("classifier",)
    backbone, head = CLASSIFY.split(model)
    assert backbone is model.backbone and head is model.classifier
    assert model(torch.tensor([[1, 2]]), torch.tensor([[1, 1]])).logits.shape == (1, 3)


def test_a_model_of_pictures_is_no_backbone_of_texts():
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    with pytest.raises(ModelError, match=r"Dinov2Model \('dinov2'\) takes no tokens of text: use a text encoder"):
        MeanPooled(Dinov2Model(Dinov2Config(**sizes)), 2)


class Uniform(torch.nn.Module):
    """Logits that are all zero over 7 tokens, honouring logits_to_keep like transformers' models."""

    def forward(self, input_ids, attention_mask, logits_to_keep, use_cache):
        assert use_cache is False
        return type("Out", (), {"logits": torch.zeros(input_ids.shape[0], len(logits_to_keep), 7)})()


def test_loss_counts_trained_tokens_only():
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4], [1, 2, 3, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "labels": torch.tensor([[IGNORE, IGNORE, 3, 4], [IGNORE, 2, IGNORE, IGNORE]]),
    }
    loss = CONTINUE.loss(Uniform(), batch, Setting(CONTINUE.Options()))
    assert int(loss.weight) == 3
    assert float(loss.sum) == pytest.approx(3 * math.log(7))


def test_who_talks_takes_what_somebody_types(registry):
    """`pefttool chat` is offered, and accepted, only where it works: speech generates, and cannot be typed."""
    talking = {name for name, task in registry.tasks.items() if talks(task, task.Options())}
    assert talking == {"causal-lm", "chat", "preference", "seq2seq"}
    for name, options in OTHER_COLUMNS.items():
        assert not talks(registry.tasks[name], registry.tasks[name].Options(**options))


def test_a_text_alone_is_offered_to_tasks_that_take_one(registry):
    """`pefttool run` ends with the command that uses what it made, and that command has to work."""
    alone = {name for name, task in registry.tasks.items() if takes_text(task, task.Options())}
    talking = {"causal-lm", "chat", "preference", "seq2seq"}
    assert alone == {"text-classification", "token-classification", "masked-lm", *talking}
    classify = registry.tasks["text-classification"]
    assert takes_text(classify, classify.Options(text_column="review"))
    assert not takes_text(classify, classify.Options(text_column="text", pair_column="text_pair"))


@pytest.mark.parametrize(("takes", "use"), [(True, "predict run --text TEXT"), (False, "predict run --data FILE")])
def test_a_run_ends_with_a_command_that_its_task_takes(takes, use, tmp_path, capsys):
    """Whatever its rows have: the second of two texts, or what is said in a recording, is a text too."""
    sample = {"row": {"text": "a", "text_pair": "b"}, "before": {}, "after": {}}
    done = Finished(Path("run"), tmp_path, {}, {}, (sample,), talks=False, takes_text=takes, main_process=True)
    _print(done, None, as_json=False)
    assert f"use it:  pefttool {use}\n" in capsys.readouterr().out
