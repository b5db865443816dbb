"""tabular-classification: a row of numbers and categories, one of several classes (who defaults, which scan is ill)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pefttool import DataError, Loaded, Loss, Options, Row, Setting, Task, suggest
from pefttool.toolkit import class_names
from pefttool.toolkit.columns import find_column
from pefttool_series import tabular_columns as columns
from pefttool_series import tabular_doubts as doubts
from pefttool_series.tabular_columns import Column

if TYPE_CHECKING:
    from torch import Tensor, nn

LABEL_COLUMNS = ("label", "class", "target", "outcome")
#: Columns that text tasks read: rows with words in them are theirs.
TEXT_COLUMNS = ("text", "sentence", "review", "content", "body", "question", "prompt")
#: What a table is taken to be where there is none yet (planning without data): this many columns of default bins.
PLANNED_COLUMNS = 32


class TabularOptions(Options):
    label_column: str | None = Field(
        None, description=f"column with the class; default: the first of {', '.join(LABEL_COLUMNS)}"
    )
    ignore: tuple[str, ...] = Field((), description="columns to leave out, such as a customer's number or name")
    bins: int = Field(16, ge=1, le=256, description="quantile bins that a column of numbers is cut into")
    class_weights: Literal["balanced", "none"] = Field(
        "none",
        description="`balanced`: rows of each class count as much as those of another; scores are then no longer"
        " estimates of how frequent a class is",
    )
    positive: str | None = Field(
        None, description="the class that f1, auroc and auprc are about, of two; default: the rarer one"
    )
    treatment_column: str | None = Field(
        None,
        description="column of 0 and 1 that says who was treated (sent a letter): predictions then have the `uplift`"
        " of treating a row, and metrics `qini` and `auuc`",
    )


class TabularClassification(Task):
    """One row of named numbers and categories, one of several classes (fraud, diagnosis, response)."""

    name = "tabular-classification"
    Options = TabularOptions
    primary = ("auprc", "max")
    repeatable = True
    truncates = False
    example: ClassVar[Mapping[str, Any]] = {
        "model": "example:all-minilm-l6-v2",
        "data": {"train": "example:breast-cancer"},
    }

    def defaults(self) -> Mapping[str, Any]:
        return {"batch_size": 32, "epochs": 5, "sequence_length": 64}

    def recognise(self, columns_: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        label = find_column(columns_, None, LABEL_COLUMNS)
        if label is None or not sample or not all(isinstance(v.get(label), str | int | bool) for v in sample):
            return None
        values = {name: [v.get(name) for v in sample] for name in columns_ if name != label}
        if any(_strange(value) is not None for given in values.values() for value in given):
            return None
        numeric = [name for name, given in values.items() if _numeric(given)]
        if len(numeric) < 2 or any(name.casefold() in TEXT_COLUMNS and name not in numeric for name in values):
            return None
        return f"{len(values)} columns of values ({len(numeric)} of numbers) and {label!r} (class)"

    def check_row(self, values: Mapping[str, Any], options: TabularOptions) -> str | None:
        label = self._label_column(values, options)
        if label is None:
            expected = repr(options.label_column) if options.label_column else f"one of {', '.join(LABEL_COLUMNS)}"
            found = ", ".join(map(repr, values)) or "none"
            return f"found columns {found}, expected {expected} (name yours with -o task.label_column=COLUMN)"
        if not isinstance(values[label], str | int | bool) or values[label] == "":
            return f"column {label!r}: found {_short(values[label])}, expected a class name or number"
        return self.check_input(values, options)

    def check_input(self, values: Mapping[str, Any], options: TabularOptions) -> str | None:
        features = self._features(values, options)
        for name in features:
            complaint = _strange(values[name])
            if complaint is not None:
                way_out = f"--task {self.name} -o task.ignore={name}"
                return f"column {name!r}: found {_short(values[name])}, {complaint} (or {way_out})"
        if len(features) < 2:
            found = ", ".join(map(repr, features)) or "none"
            return f"columns besides the class: found {found}, expected at least two"
        treatment = options.treatment_column
        if treatment is not None and values.get(treatment) is not None and self._treated(values, options) is None:
            return f"column {treatment!r}: found {_short(values[treatment])}, expected 0 or 1"
        return None

    def reads(self, values: Mapping[str, Any], options: TabularOptions) -> Iterable[str]:
        return values  # and what `task.ignore` leaves out is left out as asked

    def key(self, values: Mapping[str, Any], options: TabularOptions) -> str:
        return repr([(name, str(values[name])) for name in sorted(self._features(values, options))])

    def stratum(self, values: Mapping[str, Any], options: TabularOptions) -> str | None:
        return self._label(values, options)

    def settle(self, rows: Sequence[Row], options: TabularOptions) -> TabularOptions:
        known = {name for row in rows for name in row.values}
        for name in options.ignore:
            if name not in known:
                several = "; give several as -o 'task.ignore=[A, B]'" if "," in name else ""
                raise DataError(f"task.ignore: the rows have no column {name!r}: {suggest(name, known)}{several}")
        return options

    def labels(self, rows: Sequence[Row], options: TabularOptions) -> tuple[str, ...]:
        labels = {self._label(row.values, options) for row in rows}
        if len(labels) < 2:
            raise DataError(
                f"tabular-classification: the training rows have {len(labels)} class"
                f" ({', '.join(sorted(labels))}), expected at least 2: add rows of another"
            )
        if options.positive is not None and options.positive not in labels:
            known = ", ".join(sorted(labels))
            raise DataError(
                f"task.positive: {options.positive!r} is no class of the training rows ({known}): name one of them"
            )
        return class_names.in_order(labels)

    def remarks(self, rows: Sequence[Row], options: TabularOptions) -> Sequence[str]:
        """Warnings of quantities as classes, and of identities and dates among the features."""
        label = self._label_column(rows[0].values, options) or LABEL_COLUMNS[0]
        found = [doubts.quantity(label, self.labels(rows, options), len(rows))]
        for name in dict.fromkeys(name for row in rows for name in self._features(row.values, options)):
            values = [row.values.get(name) for row in rows]
            found += [doubts.identity(name, values), doubts.dates(name, values)]
        return [remark for remark in found if remark is not None]

    def fit(self, rows: Sequence[Row], options: TabularOptions) -> Mapping[str, Any]:
        """The columns (edges of bins, categories) and how many rows each class has."""
        labels = self.labels(rows, options)
        given = [self._label(row.values, options) for row in rows]
        counts = [given.count(label) for label in labels]
        positive = options.positive or labels[min(range(len(labels)), key=lambda c: (counts[c], -c))]
        found = columns.fit(rows, lambda values: self._features(values, options), options.bins)
        if options.treatment_column is not None and options.treatment_column not in {c.name for c in found}:
            raise DataError(
                f"task.treatment_column: {options.treatment_column!r} is no column of the training rows, or is the"
                " same in all of them: uplift needs rows of both kinds: name another, or add rows"
            )
        return {"columns": [column.as_json() for column in found], "counts": counts, "positive": positive}

    def check_given(self, rows: Sequence[Row], options: TabularOptions, fitted: Mapping[str, Any]) -> str | None:
        # Whoever has not been treated yet has no treatment.
        known = [column for column in columns.read(fitted) if column.name != options.treatment_column]
        return columns.lacking(known, rows)

    def load(self, source: Any, setting: Setting) -> Loaded:
        from transformers import AutoModel, AutoTokenizer

        from pefttool_series.tabular_model import TabularModel

        own = columns.of_model(source.config)
        if own is not None:
            columns.require_known(own, columns.read(setting.fitted) if setting.fitted else ())
            table = columns.Table(own, of_model=True)
        else:  # no text is read; the tokenizer goes with the adapter, as the model's own
            table = columns.Table(self._columns(setting), tokenizer=source.processor(AutoTokenizer))
        backbone = source.model(AutoModel)
        sizes, binned = [column.size for column in table.columns], [column.bins > 0 for column in table.columns]
        model = TabularModel(backbone, sizes, binned, len(setting.labels) or 2, table.of_model)
        return Loaded(model, table)

    def recognise_model(self, config: Any) -> str | None:
        return "it was pretrained on rows of a table" if columns.of_model(config) is not None else None

    @staticmethod
    def pretrain(rows: Sequence[Mapping[str, Any]], folder: Path, **options: Any) -> None:
        """Make a small model that knows this table, for few labels and many rows: see `pretrain`."""
        from pefttool_series.tabular_pretraining import pretrain

        pretrain(rows, folder, **options)

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        return ("columns", "classifier")

    def unused(self, model: Any) -> tuple[str, ...]:
        """What is made for text: a pooler, and the embeddings of tokens."""
        from pefttool.toolkit.model_parts import names_of

        backbone = model.backbone
        return names_of(model, getattr(backbone, "pooler", None), backbone.get_input_embeddings())

    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        encoded = self._encode_values(row, processor, setting)
        encoded["label"] = class_names.number(self._label(row.values, setting.options), setting.labels, row)
        return encoded

    @staticmethod
    def _encode_values(row: Row, table: columns.Table, setting: Setting) -> dict[str, Any]:
        found, treatment = table.columns, setting.options.treatment_column
        arms = {"": row.values}
        if treatment is not None:
            arms |= {"untreated_": {**row.values, treatment: 0}, "treated_": {**row.values, treatment: 1}}
        encoded: dict[str, Any] = {"length": len(found), "weight": 1, "trained": 1, "truncated": False}
        for arm, values in arms.items():
            try:
                encoded[f"{arm}index"], encoded[f"{arm}fraction"] = columns.place(found, values)
            except ValueError as error:
                raise DataError(f"{row.place}: {error}") from error
        return encoded

    def filler(self, length: int, setting: Setting) -> dict[str, Any]:
        counts = {"length": length, "weight": 1, "trained": 1, "truncated": False, "label": 0}
        return {"index": [0] * length, "fraction": [1.0] * length, **counts}

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting) -> dict[str, Tensor]:
        import torch

        kinds = [(n, torch.long if n.endswith("index") else torch.float32) for n in examples[0] if n.endswith(ENTRIES)]
        batch = {name: torch.tensor([e[name] for e in examples], dtype=kind) for name, kind in kinds}
        if "label" in examples[0]:
            batch["labels"] = torch.tensor([e["label"] for e in examples])
        return batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        from torch.nn.functional import cross_entropy

        labels = batch["labels"]
        logits = model(index=batch["index"], fraction=batch["fraction"]).logits.float()
        # Weights have mean 1 over the training rows, so that a row counts as one unit of the objective.
        losses = cross_entropy(logits, labels, reduction="none") * labels.new_tensor(
            self._weights(setting), dtype=logits.dtype
        ).index_select(0, labels)
        outputs = {"as it is": logits.detach()}
        if not model.training:
            outputs |= self._arms(model, batch)
        return Loss(losses.sum(), labels.new_tensor(len(labels)), outputs)

    @staticmethod
    def _arms(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits of every row as if treated and as if not, where there is a treatment."""
        arms = [name.removesuffix("_index") for name in batch if name.endswith("_index")]
        return {arm: model(index=batch[f"{arm}_index"], fraction=batch[f"{arm}_fraction"]).logits for arm in arms}

    def decode(self, outputs: Mapping[str, Tensor], setting: Setting) -> list[dict[str, Any]]:
        probabilities = {arm: logits.float().softmax(-1).tolist() for arm, logits in outputs.items()}
        predictions = []
        for i, row in enumerate(probabilities["as it is"]):
            best = max(range(len(row)), key=row.__getitem__)
            scores = dict(zip(setting.labels, row, strict=True))
            predictions.append({"label": setting.labels[best], "score": row[best], "scores": scores})
            if "treated" in probabilities:
                at = setting.labels.index(setting.fitted["positive"])
                uplift = probabilities["treated"][i][at] - probabilities["untreated"][i][at]
                predictions[-1]["uplift"] = uplift
        return predictions

    def predict(self, model: nn.Module, rows: Sequence[Row], processor: Any, setting: Setting) -> list[dict[str, Any]]:
        from pefttool.nn import embedding_offload

        device = embedding_offload.device_of(model)
        batch = self.collate([self._encode_values(row, processor, setting) for row in rows], processor, setting)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        logits = model(index=batch["index"], fraction=batch["fraction"]).logits
        return self.decode({"as it is": logits, **self._arms(model, batch)}, setting)

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        from pefttool_series.tabular_metrics import classification

        truth = [self._label(row.values, setting.options) for row in rows]
        found = classification(truth, predictions, setting.labels, setting.fitted["positive"])
        if setting.options.treatment_column is not None:
            found |= self._uplift_metrics(predictions, rows, truth, setting)
        return {**found, "loss": loss}

    def _uplift_metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], truth: Sequence[str], setting: Setting
    ) -> dict[str, float]:
        from pefttool_series.uplift import auuc, qini

        known = [
            (p, t, self._treated(r.values, setting.options)) for p, t, r in zip(predictions, truth, rows, strict=True)
        ]
        uplift = [p["uplift"] for p, _, treated in known if treated is not None]
        responded = [t == setting.fitted["positive"] for _, t, treated in known if treated is not None]
        given = [treated for _, _, treated in known if treated is not None]
        return {"qini": qini(uplift, given, responded), "auuc": auuc(uplift, given, responded)}

    def preview(self, example: Mapping[str, Any], processor: Any) -> str:
        placed = zip(example["index"], example["fraction"], strict=True)
        return f"{' '.join(f'{i}+{f:.2f}' for i, f in placed)} -> class {example['label']}"

    @staticmethod
    def _label_column(values: Mapping[str, Any], options: TabularOptions) -> str | None:
        return find_column(values, options.label_column, LABEL_COLUMNS)

    def _label(self, values: Mapping[str, Any], options: TabularOptions) -> str:
        return str(values[self._label_column(values, options) or LABEL_COLUMNS[0]])

    def _features(self, values: Mapping[str, Any], options: TabularOptions) -> list[str]:
        without = {*options.ignore, self._label_column(values, options)}
        return [name for name in values if name not in without]

    @staticmethod
    def _treated(values: Mapping[str, Any], options: TabularOptions) -> bool | None:
        number = columns.as_number(values.get(str(options.treatment_column)))
        return bool(number) if number in (0.0, 1.0) else None

    @staticmethod
    def _columns(setting: Setting) -> tuple[Column, ...]:
        if setting.fitted:
            return columns.read(setting.fitted)
        edges = tuple(map(float, range((setting.options or TabularOptions()).bins + 1)))
        return tuple(Column(str(i), edges=edges) for i in range(PLANNED_COLUMNS))

    @staticmethod
    def _weights(setting: Setting) -> list[float]:
        counts = setting.fitted.get("counts") or [1] * (len(setting.labels) or 2)
        if setting.options.class_weights == "none":
            return [1.0] * len(counts)
        return [sum(counts) / (len(counts) * max(count, 1)) for count in counts]


#: Ends of the names of encoded entries that make a batch.
ENTRIES = ("index", "fraction")


def _strange(value: Any) -> str | None:
    """What is expected where this value can be neither a number nor a category, or None."""
    if isinstance(value, str):
        words = len(value.split())
        return f"expected a number or a category, not {words} words" if words > columns.MOST_WORDS else None
    if columns.is_missing(value) or columns.as_number(value) is not None:
        return None
    infinite = isinstance(value, float) and math.isinf(value)
    return "expected a finite number" if infinite else "expected a number or a category"


def _numeric(values: Sequence[Any]) -> bool:
    """Numbers only, as far as there are values."""
    present = [value for value in values if not columns.is_missing(value)]
    return bool(present) and all(columns.as_number(value) is not None for value in present)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
