"""text-classification: one or two texts, and one class, several, or a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pefttool import DataError, Direction, Facts, Loaded, Loss, Options, Problem, Row, Setting, Task
from pefttool.toolkit import class_names
from pefttool.toolkit.columns import describe, find_column, missing_column
from pefttool_text import encoder, label_kinds, text_columns, written_lists
from pefttool_text.batching import kind_of
from pefttool_text.label_kinds import KINDS, MULTI, SINGLE, LabelKind, MultiHot, MultiLabel
from pefttool_text.text_columns import PAIRS, TEXT_COLUMNS

if TYPE_CHECKING:
    from torch import Tensor, nn

LABEL_COLUMNS = ("label", "labels", "class", "category", "sentiment", "score")
#: The ids that end a text of T5's and BART's kind, which are classified by the state there: a row that is planned with
#: has them.
ENDS = (1, 2)


class ClassificationOptions(Options):
    text_column: str | None = Field(
        None, description=f"column with the text; default: the first of {', '.join(TEXT_COLUMNS)}"
    )
    pair_column: str | None = Field(
        None,
        description="column with a second text, such as a hypothesis; default: there is one where the columns are"
        f" {', '.join(' and '.join(pair) for pair in PAIRS)}",
    )
    label_column: str | None = Field(
        None, description=f"column with the label; default: the first of {', '.join(LABEL_COLUMNS)}"
    )
    kind: Literal["auto", "single-label", "multi-label", "regression"] = Field(
        "auto",
        description="what a label is: one class, a list of classes (by name, or of 0 and 1 with a place for each), or a"
        " number; `auto`: what the training rows can only mean (lists: multi-label, fractions: regression)",
    )
    classes: tuple[str, ...] = Field(
        (),
        description="names of the classes, where labels are lists of 0 and 1 with a place for each; default: 0, 1, 2",
    )
    pooling: Literal["auto", "model", "mean"] = Field(
        "auto",
        description="how token features become one: `model`: the model's own head (transformers'"
        " ForSequenceClassification);"
        " `mean`: mean over tokens and one new layer; `auto`: `mean` where the backbone stays frozen",
    )


class TextClassification(Task):
    """One or two texts, and one class (sentiment, topic, entailment), several classes, or a number (similarity)."""

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
        pair = text_columns.usual_pair(columns)
        one, label = (find_column(columns, None, usual) for usual in (TEXT_COLUMNS, LABEL_COLUMNS))
        text = pair or (() if one is None else (one,))
        if not text or label is None or not all(isinstance(v.get(c), str) for v in sample for c in text):
            return None
        # A number too large is a label, if a bad one: the row is told, not that no task knows it.
        given = [v.get(label) for v in sample]
        kinds = _possible(ClassificationOptions())
        if not all(isinstance(v, float) or any(kind.fits(v) for kind in kinds) for v in given):
            return None
        kind, why = label_kinds.recognise(given)
        said = "class" if kind is SINGLE else why
        return f"columns {', '.join(map(repr, text))} (text) and {label!r} ({said})"

    def recognise_model(self, config: Any) -> str | None:
        if kind_of(config) == "encoder":
            return f"{config.model_type} encodes text"
        return None

    def check_row(self, values: Mapping[str, Any], options: ClassificationOptions) -> str | None:
        complaint = text_columns.complaint(values, options)
        if complaint is not None:
            return complaint
        column = find_column(values, options.label_column, LABEL_COLUMNS)
        if column is None:
            return missing_column(values, options.label_column, LABEL_COLUMNS, "label_column")
        kinds, value = _possible(options), values[column]
        if options.kind != SINGLE.name and written_lists.is_written(value):
            return (
                f"column {column!r}: found a list written as text, expected a list, which tables cannot hold: give JSON"
                f" Lines, or say -o task.kind={SINGLE.name} where this is the name of a class"
            )
        if any(kind.fits(value) for kind in kinds):
            return None
        told = next((told for kind in kinds if (told := kind.complaint(value)) is not None), None)
        several = "a class, a list of classes, or a number"
        expected = several if options.kind == "auto" else " or ".join(kind.expected for kind in kinds)
        return f"column {column!r}: {told or f'found {describe(value)}, expected {expected}'}"

    def check_input(self, values: Mapping[str, Any], options: ClassificationOptions) -> str | None:
        return text_columns.complaint(values, options)

    def settle(self, rows: Sequence[Row], options: ClassificationOptions) -> ClassificationOptions:
        """What `kind: auto` means; and two texts in one row are two texts in every row."""
        settled: dict[str, Any] = {}
        pair = next((found for row in rows if (found := text_columns.usual_pair(row.values))), None)
        if pair is not None and options.text_column is None and options.pair_column is None:
            settled |= {"text_column": pair[0], "pair_column": pair[1]}
        given = [self._value(row.values, options) for row in rows]
        if options.kind == "auto":
            kind, why = label_kinds.recognise(given)
            if kind is None:
                column = find_column(rows[0].values, options.label_column, LABEL_COLUMNS)
                first, *others = KINDS
                raise DataError(
                    f"{self.name}: column {column!r} of the training rows: {why}{self._unlike(rows, options)}: say"
                    f" --task {self.name} -o task.kind={first} (or {', '.join(others)})"
                )
            settled["kind"] = kind.name
        if settled.get("kind", options.kind) == MULTI.name:
            settled["classes"] = options.classes or label_kinds.places(given)
        elif options.classes:
            raise DataError(
                f"{self.name}: task.classes names the places of lists of 0 and 1, and the training rows' labels are"
                f" {settled.get('kind', options.kind)}: drop it"
            )
        return options.model_copy(update=settled)

    def reads(self, values: Mapping[str, Any], options: ClassificationOptions) -> Iterable[str]:
        label = find_column(values, options.label_column, LABEL_COLUMNS)
        return [name for name in (*text_columns.columns(values, options), label) if name is not None]

    def judge(self, setting: Setting) -> tuple[str, Direction]:
        kind = _kind(setting.options)
        return self.primary if kind is SINGLE else kind.primary

    def key(self, values: Mapping[str, Any], options: ClassificationOptions) -> str:
        return "\n".join(" ".join(text.split()) for text in text_columns.texts(values, options))

    def stratum(self, values: Mapping[str, Any], options: ClassificationOptions) -> str | None:
        return _kind(options).stratum(self._label(values, options))

    def classes(self, values: Mapping[str, Any], options: ClassificationOptions) -> Sequence[str]:
        return _kind(options).classes(self._label(values, options))

    def labels(self, rows: Sequence[Row], options: ClassificationOptions) -> tuple[str, ...]:
        kind = _kind(options)
        names = kind.names([self._label(row.values, options) for row in rows])
        return label_kinds.require_classes(self.name, names) if _has_classes(kind) else names

    def remarks(self, rows: Sequence[Row], options: ClassificationOptions) -> Sequence[str]:
        return text_columns.absent([text for row in rows for text in text_columns.texts(row.values, options)])

    def fit(self, rows: Sequence[Row], options: ClassificationOptions) -> Mapping[str, Any]:
        return _kind(options).fit([self._label(row.values, options) for row in rows])

    @staticmethod
    def _value(values: Mapping[str, Any], options: ClassificationOptions) -> Any:
        return values[find_column(values, options.label_column, LABEL_COLUMNS) or "label"]

    def _unlike(self, rows: Sequence[Row], options: ClassificationOptions) -> str:
        """Where the first label of another type than the first row's stands."""
        own, *others = ((row, self._value(row.values, options)) for row in rows)
        other = next((one for one in others if type(one[1]) is not type(own[1])), None)
        if other is None:
            return ""
        return " (" + ", ".join(f"{row.place}: {describe(value)}" for row, value in (own, other)) + ")"

    def _label(self, values: Mapping[str, Any], options: ClassificationOptions) -> Any:
        return _kind(options).read(self._value(values, options))

    def check(self, options: ClassificationOptions, facts: Facts) -> list[Problem]:
        if options.pooling == "mean" and facts.quantizer is not None and not facts.linear_modules:
            return [Problem("task.pooling", "'mean' needs a backbone with linear layers; use 'model'")]
        return []

    def load(self, source: Any, setting: Setting) -> Loaded:
        from transformers import AutoModel, AutoModelForSequenceClassification

        kind = _kind(setting.options)
        names = _outputs(kind, setting)
        described = {"problem_type": kind.problem_type}
        if self._mean_pooling(setting):
            from pefttool_text.pooling import MeanPooled

            loaded = encoder.load(source, AutoModel, names, **described)
            return Loaded(MeanPooled(loaded.model, len(names)), loaded.processor)
        encoder.require_first(source.config)
        loaded = encoder.load(source, AutoModelForSequenceClassification, names, **described)
        if setting.fitted and not source.abstract:  # numbers
            from pefttool_text import units

            heads = self.head_modules(loaded.model)
            told = units.keep(loaded.model, heads, source.missing, units.of(source.path), setting.fitted)
            source.notices += (told,) if told is not None else ()
        return loaded

    @staticmethod
    def _mean_pooling(setting: Setting) -> bool:
        pooling: str = setting.options.pooling
        return pooling == "mean" or (pooling == "auto" and setting.frozen_backbone)

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        return encoder.head_modules(model)

    def unused(self, model: nn.Module) -> tuple[str, ...]:
        """A pooler beside which the mean over tokens is taken."""
        from pefttool.toolkit.model_parts import names_of

        own = hasattr(model, "pool")
        return names_of(model, getattr(model.backbone, "pooler", None)) if own else super().unused(model)

    def split(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        (head,) = self.head_modules(model)
        return model.get_submodule(getattr(model, "base_model_prefix", "backbone")), model.get_submodule(head)

    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        kind, label = _kind(setting.options), self._label(row.values, setting.options)
        class_names.numbers(kind.classes(label), setting.labels, row)  # of several classes none is passed over
        target = kind.target(label, setting.labels, setting.fitted)
        return {**self._encode_text(row, processor, setting), "label": target}

    def _encode_text(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        given = text_columns.texts(row.values, setting.options)
        return {**text_columns.encode(given, processor, setting.sequence_length), "weight": 1, "trained": 1}

    def filler(self, length: int, setting: Setting) -> dict[str, Any]:
        kind = _kind(setting.options)
        label = kind.filler(_outputs(kind, setting))
        ids = [*[0] * length, *ENDS][-length:]
        return {"input_ids": ids, "length": length, "weight": 1, "trained": 1, "truncated": False, "label": label}

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting) -> dict[str, Tensor]:
        batch = encoder.input_tensors(examples, processor, setting.sequence_length)
        if "label" in examples[0]:
            batch["labels"] = _kind(setting.options).targets([e["label"] for e in examples])
        return batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        labels = batch["labels"]
        logits = model(**encoder.model_inputs(batch)).logits.float()
        summed = _kind(setting.options).loss(logits, labels)
        return Loss(summed, labels.new_tensor(len(labels)), logits.detach())

    def decode(self, outputs: Tensor, setting: Setting) -> list[dict[str, Any]]:
        return _kind(setting.options).decode(outputs.float(), setting.labels, setting.fitted)

    def predict(self, model: nn.Module, rows: Sequence[Row], processor: Any, setting: Setting) -> list[dict[str, Any]]:
        from pefttool.nn import embedding_offload
        from pefttool.toolkit import truncation

        device = embedding_offload.device_of(model)
        encoded = [self._encode_text(r, processor, setting) for r in rows]
        truncation.tell(inputs=sum(e["truncated"] for e in encoded))
        batch = self.collate(encoded, processor, setting)
        logits = model(**{k: v.to(device) for k, v in batch.items()}).logits
        return self.decode(logits, setting)

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        truth = [self._label(row.values, setting.options) for row in rows]
        return {**_kind(setting.options).metrics(truth, predictions, setting.labels), "loss": loss}

    def preview(self, example: Mapping[str, Any], processor: Any) -> str:
        what = "class" if isinstance(example["label"], int) else "target"
        return f"{processor.decode(example['input_ids'])} -> {what} {example['label']}"


def _kind(options: ClassificationOptions) -> LabelKind:
    """Before the rows have been seen (a plan without data), `auto` is taken for one class."""
    if options.kind == MULTI.name and options.classes:
        return MultiHot(options.classes)
    return SINGLE if options.kind == "auto" else KINDS[options.kind]


def _possible(options: ClassificationOptions) -> Sequence[LabelKind]:
    """What a label may be; before the rows have been seen, that is more than one thing."""
    if options.kind == "auto":
        return (*KINDS.values(), MultiHot(options.classes))
    kind = _kind(options)
    return (kind, MultiHot()) if kind is MULTI else (kind,)


def _has_classes(kind: LabelKind) -> bool:
    return kind is SINGLE or isinstance(kind, MultiLabel)


def _outputs(kind: LabelKind, setting: Setting) -> Sequence[str]:
    """Names of the head's outputs: two classes where none are known yet, one output where there are none."""
    return setting.labels or (("0", "1") if _has_classes(kind) else ("value",))
