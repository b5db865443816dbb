"""text-classification: one text, one of several classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pefttool import DataError, Facts, Loaded, Loss, Options, Problem, Row, Setting, Task
from pefttool_text.batching import attention_mask, describe, find_column, kind_of, missing_column, pad, pad_id

if TYPE_CHECKING:
    from torch import Tensor, nn

TEXT_COLUMNS = ("text", "sentence", "review", "content", "body")
LABEL_COLUMNS = ("label", "labels", "class", "category", "sentiment")


class ClassificationOptions(Options):
    text_column: str | None = Field(
        None, description=f"column with the text; default: the first of {', '.join(TEXT_COLUMNS)}"
    )
    label_column: str | None = Field(
        None, description=f"column with the class; default: the first of {', '.join(LABEL_COLUMNS)}"
    )
    pooling: Literal["auto", "model", "mean"] = Field(
        "auto",
        description="how token features become one: `model`: the model's own head (transformers'"
        " ForSequenceClassification);"
        " `mean`: mean over tokens and one new layer; `auto`: `mean` where the backbone stays frozen",
    )


class TextClassification(Task):
    """One text, one of several classes (sentiment, topic, spam)."""

    name = "text-classification"
    Options = ClassificationOptions
    primary = ("accuracy", "max")
    repeatable = True
    peft_task_type = "SEQ_CLS"
    example: ClassVar[Mapping[str, Any]] = {
        "model": "example:all-minilm-l6-v2",
        "data": {"train": "example:movie-snippets"},
    }

    def defaults(self) -> Mapping[str, Any]:
        return {"batch_size": 32, "epochs": 3, "sequence_length": 256}

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        text, label = (next((c for c in usual if c in columns), None) for usual in (TEXT_COLUMNS, LABEL_COLUMNS))
        if text is None or label is None or not all(isinstance(v.get(text), str) for v in sample):
            return None
        if not all(isinstance(v.get(label), str | int | bool) for v in sample):
            return None
        return f"columns {text!r} (text) and {label!r} (class)"

    def recognise_model(self, config: Any) -> str | None:
        if kind_of(config) == "encoder":
            return f"{config.model_type} encodes text"
        return None

    def check_row(self, values: Mapping[str, Any], options: ClassificationOptions) -> str | None:
        text = find_column(values, options.text_column, TEXT_COLUMNS)
        if text is None:
            return missing_column(values, options.text_column, TEXT_COLUMNS, "text_column")
        if not isinstance(values[text], str) or not values[text].strip():
            return f"column {text!r}: found {describe(values[text])}, expected text"
        label = find_column(values, options.label_column, LABEL_COLUMNS)
        if label is None:
            return missing_column(values, options.label_column, LABEL_COLUMNS, "label_column")
        if not isinstance(values[label], str | int | bool) or values[label] == "":
            return f"column {label!r}: found {describe(values[label])}, expected a class name or number"
        return None

    def key(self, values: Mapping[str, Any], options: ClassificationOptions) -> str:
        return " ".join(self._text(values, options).split())

    def stratum(self, values: Mapping[str, Any], options: ClassificationOptions) -> str | None:
        return self._label(values, options)

    def labels(self, rows: Sequence[Row], options: ClassificationOptions) -> tuple[str, ...]:
        labels = {self._label(row.values, options) for row in rows}
        if len(labels) < 2:
            raise DataError(
                f"text-classification: the training rows have {len(labels)} class"
                f" ({', '.join(sorted(labels))}), expected at least 2"
            )
        numeric = all(label.lstrip("-").isdigit() for label in labels)
        return tuple(sorted(labels, key=int if numeric else None))

    def _text(self, values: Mapping[str, Any], options: ClassificationOptions) -> str:
        return str(values[find_column(values, options.text_column, TEXT_COLUMNS) or "text"])

    def _label(self, values: Mapping[str, Any], options: ClassificationOptions) -> str:
        return str(values[find_column(values, options.label_column, LABEL_COLUMNS) or "label"])

    def check(self, options: ClassificationOptions, facts: Facts) -> list[Problem]:
        if options.pooling == "mean" and facts.quantizer is not None and not facts.linear_modules:
            return [Problem("task.pooling", "'mean' needs a backbone with linear layers; use 'model'")]
        return []

    def load(self, source: Any, setting: Setting) -> Loaded:
        from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

        tokenizer = source.processor(AutoTokenizer)
        names = {i: label for i, label in enumerate(setting.labels or ("0", "1"))}
        described = {"num_labels": len(names), "id2label": names, "label2id": {v: k for k, v in names.items()}}
        if source.config.pad_token_id is None:
            described["pad_token_id"] = pad_id(tokenizer)
        if self._mean_pooling(setting):
            from pefttool_text.pooling import MeanPooled

            return Loaded(MeanPooled(source.model(AutoModel, **described), len(names)), tokenizer)
        return Loaded(source.model(AutoModelForSequenceClassification, **described), tokenizer)

    @staticmethod
    def _mean_pooling(setting: Setting) -> bool:
        pooling: str = setting.options.pooling
        return pooling == "mean" or (pooling == "auto" and setting.frozen_backbone)

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        backbone = getattr(model, "base_model_prefix", "backbone")
        return tuple(n for n, m in model.named_children() if n != backbone and any(True for _ in m.parameters()))

    def split(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        (head,) = self.head_modules(model)
        return model.get_submodule(getattr(model, "base_model_prefix", "backbone")), model.get_submodule(head)

    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        encoded = self._encode_text(row, processor, setting)
        encoded["label"] = setting.labels.index(self._label(row.values, setting.options))
        return encoded

    def _encode_text(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        text = self._text(row.values, setting.options)
        ids = processor(text, truncation=True, max_length=setting.sequence_length + 1)["input_ids"]
        truncated = len(ids) > setting.sequence_length
        if truncated:
            ids = processor(text, truncation=True, max_length=setting.sequence_length)["input_ids"]
        return {"input_ids": ids, "length": len(ids), "weight": 1, "trained": 1, "truncated": truncated}

    def filler(self, length: int, setting: Setting) -> dict[str, Any]:
        return {"input_ids": [0] * length, "length": length, "weight": 1, "trained": 1, "truncated": False, "label": 0}

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting) -> dict[str, Tensor]:
        import torch

        ids = [e["input_ids"] for e in examples]
        most = setting.sequence_length
        batch = {"input_ids": pad(ids, pad_id(processor), most=most), "attention_mask": attention_mask(ids, most=most)}
        if "label" in examples[0]:
            batch["labels"] = torch.tensor([e["label"] for e in examples])
        return batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        from torch.nn.functional import cross_entropy

        labels = batch["labels"]
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        return Loss(cross_entropy(logits, labels, reduction="sum"), labels.new_tensor(len(labels)), logits.detach())

    def decode(self, outputs: Tensor, setting: Setting) -> list[dict[str, Any]]:
        probabilities = outputs.float().softmax(-1)
        best = probabilities.max(-1)
        return [
            {
                "label": setting.labels[index],
                "score": score,
                "scores": dict(zip(setting.labels, row, strict=True)),
            }
            for index, score, row in zip(
                best.indices.tolist(), best.values.tolist(), probabilities.tolist(), strict=True
            )
        ]

    def predict(self, model: nn.Module, rows: Sequence[Row], processor: Any, setting: Setting) -> list[dict[str, Any]]:
        from pefttool import host_tables

        device = host_tables.device(model)
        batch = self.collate([self._encode_text(r, processor, setting) for r in rows], processor, setting)
        logits = model(**{k: v.to(device) for k, v in batch.items()}).logits
        return self.decode(logits, setting)

    def check_input(self, values: Mapping[str, Any], options: ClassificationOptions) -> str | None:
        if find_column(values, options.text_column, TEXT_COLUMNS) is None:
            return missing_column(values, options.text_column, TEXT_COLUMNS, "text_column")
        return None

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score

        truth = [self._label(row.values, setting.options) for row in rows]
        given = [p["label"] for p in predictions]
        return {
            "accuracy": float(accuracy_score(truth, given)),
            "f1_macro": float(f1_score(truth, given, average="macro", labels=list(setting.labels), zero_division=0.0)),
            "loss": loss,
        }

    def preview(self, example: Mapping[str, Any], processor: Any) -> str:
        return f"{processor.decode(example['input_ids'])} -> class {example['label']}"
