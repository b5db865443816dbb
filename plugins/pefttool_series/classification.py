"""series-classification: one series of one or more channels, one of several classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pefttool import DataError, Loaded, Loss, Options, Row, Setting, Task
from pefttool.toolkit import class_names
from pefttool.toolkit.columns import find_column
from pefttool_series import models, processor
from pefttool_series.reading import (
    LABEL_COLUMNS,
    OF_LONG,
    SERIES_COLUMNS,
    check_label,
    check_series,
    is_series,
    label_of,
    missing_series,
)
from pefttool_series.tensors import to_batch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttool_series.processor import SeriesProcessor


class SeriesClassificationOptions(Options):
    series_column: str | None = Field(
        None, description=f"column with the series; default: the first of {', '.join(SERIES_COLUMNS)}"
    )
    label_column: str | None = Field(
        None, description=f"column with the class; default: the first of {', '.join(LABEL_COLUMNS)}"
    )
    positive_label: str | None = Field(
        None, description="of two classes the one that AUROC and AUPRC are of; default: the last by name"
    )
    scaling: Literal["dataset", "model"] = Field(
        "dataset",
        description="`dataset`: every channel by its mean and deviation over the training rows, so that amplitudes"
        " still tell classes apart; `model`: as the model scales each series by itself",
    )


class SeriesClassification(Task):
    """One series of one or more channels, one of several classes (machine states, motions, heart beats)."""

    name = "series-classification"
    Options = SeriesClassificationOptions
    primary = ("accuracy", "max")
    repeatable = True
    truncates = False
    example: ClassVar[Mapping[str, Any]] = {
        "model": "example:patchtst-voices",
        "data": {"train": "example:voices"},
    }

    def defaults(self) -> Mapping[str, Any]:
        return {"batch_size": 16, "epochs": 20}

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        series, label = (find_column(columns, None, usual) for usual in (SERIES_COLUMNS, LABEL_COLUMNS))
        if series is None or label is None or not all(is_series(v.get(series)) for v in sample):
            return None
        if any(check_label(values, label) for values in sample):
            return None
        return f"columns {series!r} (numbers) and {label!r} (class)"

    def recognise_model(self, config: Any) -> str | None:
        said = " ".join(getattr(config, "architectures", None) or ())
        if config.model_type == models.MODEL_TYPE and "ForPrediction" not in said:
            return f"{config.model_type} encodes series"
        return None

    def check_row(self, values: Mapping[str, Any], options: SeriesClassificationOptions) -> str | None:
        return self.check_input(values, options) or check_label(values, options.label_column)

    def check_input(self, values: Mapping[str, Any], options: SeriesClassificationOptions) -> str | None:
        column = find_column(values, options.series_column, SERIES_COLUMNS)
        if column is None:
            return missing_series(values, options.series_column)
        return check_series(values[column], column)

    def reads(self, values: Mapping[str, Any], options: SeriesClassificationOptions) -> Iterable[str]:
        label = find_column(values, options.label_column, LABEL_COLUMNS)
        return [name for name in (self._column(values, options), label, *OF_LONG) if name is not None]

    def key(self, values: Mapping[str, Any], options: SeriesClassificationOptions) -> str:
        return repr(values[self._column(values, options)])

    def stratum(self, values: Mapping[str, Any], options: SeriesClassificationOptions) -> str | None:
        return label_of(values, options.label_column)

    def labels(self, rows: Sequence[Row], options: SeriesClassificationOptions) -> tuple[str, ...]:
        labels = {label_of(row.values, options.label_column) for row in rows}
        if len(labels) < 2:
            found = f"{len(labels)} class ({', '.join(sorted(labels))})"
            raise DataError(
                f"series-classification: the training rows have {found}, expected at least 2: add rows of another"
            )
        if options.positive_label is not None and options.positive_label not in labels:
            found = f"task.positive_label: {options.positive_label!r} is no class of the training rows"
            raise DataError(f"{found} ({', '.join(sorted(labels)[:10])}): name one of them")
        return class_names.in_order(labels)

    def fit(self, rows: Sequence[Row], options: SeriesClassificationOptions) -> Mapping[str, Any]:
        return processor.fit(rows, self._column(rows[0].values, options))

    @staticmethod
    def _column(values: Mapping[str, Any], options: SeriesClassificationOptions) -> str:
        return find_column(values, options.series_column, SERIES_COLUMNS) or SERIES_COLUMNS[0]

    def load(self, source: Any, setting: Setting) -> Loaded:
        models.check_type(source.config, self.name)
        dataset = setting.options.scaling == "dataset"
        prepared = processor.make(source.config, setting.fitted, dataset)
        described = dict(models.describe_classes(setting.labels))
        if source.config.pooling_type is None and not source.config.use_cls_token:
            described["pooling_type"] = "mean"  # a forecaster's head may read every patch, a classifier's cannot
        if dataset:
            described["scaling"] = None
        return Loaded(models.load(source, "PatchTSTForClassification", prepared.channels, **described), prepared)

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        return ("head",)

    def split(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        return model.get_submodule("model"), model.get_submodule("head")

    def encode(self, row: Row, processor: SeriesProcessor, setting: Setting) -> dict[str, Any]:
        encoded = self._encode_series(row, processor, setting)
        label = label_of(row.values, setting.options.label_column)
        encoded["label"] = class_names.number(label, setting.labels, row)
        return encoded

    def _encode_series(self, row: Row, processor: SeriesProcessor, setting: Setting) -> dict[str, Any]:
        window = processor.window(row, self._column(row.values, setting.options))
        return {
            "values": window.values,
            "observed": window.observed,
            "padded": window.padded,
            "length": processor.patches,
            "weight": 1,
            "trained": 1,
            "truncated": window.cropped > 0,
        }

    def filler(self, length: int, setting: Setting) -> dict[str, Any]:
        """A row of one constant: `collate` knows how many values a window has, whatever `length` says."""
        row = {"values": [0.0], "observed": [1], "padded": 0, "length": length, "truncated": False}
        return {**row, "weight": 1, "trained": 1, "label": 0}

    def collate(
        self, examples: Sequence[Mapping[str, Any]], processor: SeriesProcessor, setting: Setting
    ) -> dict[str, Tensor]:
        import torch

        batch = to_batch(examples, processor)
        if "label" in examples[0]:
            batch["labels"] = torch.tensor([e["label"] for e in examples])
        return batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        from torch.nn.functional import cross_entropy

        labels = batch["labels"]
        logits = self._logits(model, batch)
        return Loss(cross_entropy(logits, labels, reduction="sum"), labels.new_tensor(len(labels)), logits.detach())

    @staticmethod
    def _logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        outputs = model(past_values=batch["past_values"], past_observed_mask=batch["past_observed_mask"])
        logits: Tensor = outputs.prediction_logits.float()
        return logits

    def decode(self, outputs: Tensor, setting: Setting) -> list[dict[str, Any]]:
        probabilities = outputs.float().softmax(-1)
        best = probabilities.max(-1)
        return [
            {"label": setting.labels[index], "score": score, "scores": dict(zip(setting.labels, row, strict=True))}
            for index, score, row in zip(
                best.indices.tolist(), best.values.tolist(), probabilities.tolist(), strict=True
            )
        ]

    def predict(
        self, model: nn.Module, rows: Sequence[Row], processor: SeriesProcessor, setting: Setting
    ) -> list[dict[str, Any]]:
        from pefttool.nn import embedding_offload

        device = embedding_offload.device_of(model)
        batch = self.collate([self._encode_series(r, processor, setting) for r in rows], processor, setting)
        return self.decode(self._logits(model, {k: v.to(device) for k, v in batch.items()}), setting)

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

        truth = [label_of(row.values, setting.options.label_column) for row in rows]
        given = [p["label"] for p in predictions]
        found = {
            "accuracy": float(accuracy_score(truth, given)),
            "f1_macro": float(f1_score(truth, given, average="macro", zero_division=0.0)),
            "loss": loss,
        }
        if len(setting.labels) == 2 and len(set(truth)) == 2:
            positive = setting.options.positive_label or setting.labels[1]
            scores = [p["scores"][positive] for p in predictions]
            actual = [label == positive for label in truth]
            found["auroc"] = float(roc_auc_score(actual, scores))
            found["auprc"] = float(average_precision_score(actual, scores))
        return found

    def preview(self, example: Mapping[str, Any], processor: SeriesProcessor) -> str:
        padded = f", {example['padded']} of them padding" if example["padded"] else ""
        size = f"{processor.channels} channels of {processor.context_length} values{padded}"
        return f"{size}, {processor.patches} patches each -> class {example['label']}"
