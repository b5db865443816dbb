"""token-classification: a tag for every word (entities, parts of speech)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pefttool import DataError, Direction, Loaded, Loss, Options, Row, Setting, Task
from pefttool.toolkit import class_names
from pefttool.toolkit.columns import describe, find_column, missing_column
from pefttool_text import encoder, label_kinds, spans, tagging
from pefttool_text.batching import IGNORE, pad
from pefttool_text.tagging import Scheme

if TYPE_CHECKING:
    from torch import Tensor, nn

WORD_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("tags", "ner_tags", "pos_tags", "labels")
TEXT = "text"
AS_THEY_ARE = "--task token-classification -o task.scheme=plain takes tags as they are"


class TokenClassificationOptions(Options):
    words_column: str | None = Field(
        None, description=f"column with the list of words; default: the first of {', '.join(WORD_COLUMNS)}"
    )
    tags_column: str | None = Field(
        None, description=f"column with a tag for each word; default: the first of {', '.join(TAG_COLUMNS)}"
    )
    scheme: Literal["auto", "bio", "plain"] = Field(
        "auto",
        description="`bio`: B-type, I-type and O spell entities, which are counted whole; `plain`: tags stand for"
        " themselves; `auto`: what the training rows' tags look like",
    )


class TokenClassification(Task):
    """A tag for every word: entities (B-person, I-person, O), parts of speech."""

    name = "token-classification"
    Options = TokenClassificationOptions
    primary = ("f1", "max")
    repeatable = True
    judged_by_answers = True  # an entity has words, which no batch holds
    peft_task_type = "TOKEN_CLS"
    #: Nearly all words are outside: a head that learns slowly lets the adapter learn that alone. Measured on tweets, F1
    #: after one epoch at the usual rate of heads and at ten times that: lora 0 and 0.41, full 0.18 and 0.48.
    rates: ClassVar[Mapping[str, float]] = {"head_learning_rate": 10.0}
    example: ClassVar[Mapping[str, Any]] = {
        "model": "example:all-minilm-l6-v2",
        "data": {"train": "example:tweet-entities"},
    }

    def defaults(self) -> Mapping[str, Any]:
        return {"batch_size": 16, "epochs": 4, "sequence_length": 256}

    def judge(self, setting: Setting) -> tuple[str, Direction]:
        return ("accuracy", "max") if setting.options.scheme == "plain" else self.primary

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        if sample and all(map(spans.column, sample)) and any(v[spans.column(v)] for v in sample):
            return "texts with spans of characters"
        words, tags = (find_column(columns, None, usual) for usual in (WORD_COLUMNS, TAG_COLUMNS))
        if words is None or tags is None or any(self.check_row(v, TokenClassificationOptions()) for v in sample):
            return None
        return f"columns {words!r} (words) and {tags!r} (a tag for each)"

    def check_row(self, values: Mapping[str, Any], options: TokenClassificationOptions) -> str | None:
        words = find_column(values, options.words_column, WORD_COLUMNS)
        if words is None:
            missing = missing_column(values, options.words_column, WORD_COLUMNS, "words_column")
            return spans.complaint(values) or missing
        complaint = _not_words(words, values[words])
        if complaint is not None:
            return complaint
        tags = find_column(values, options.tags_column, TAG_COLUMNS)
        if tags is None:
            return missing_column(values, options.tags_column, TAG_COLUMNS, "tags_column")
        if not isinstance(values[tags], list) or not all(map(label_kinds.is_class, values[tags])):
            return f"column {tags!r}: found {describe(values[tags])}, expected a list of tags"
        if len(values[tags]) != len(values[words]):
            return f"column {tags!r}: found {len(values[tags])} tags, expected {len(values[words])}: one for each word"
        if options.scheme == "bio":
            odd = next(
                (t for t in self._tags(values, options) if t != tagging.OUTSIDE and not tagging.BIO.match(t)), None
            )
            if odd is not None:
                return f"column {tags!r}: found {describe(odd)}, expected O, B-type or I-type ({AS_THEY_ARE})"
        return None

    def check_input(self, values: Mapping[str, Any], options: TokenClassificationOptions) -> str | None:
        column = find_column(values, options.words_column, WORD_COLUMNS)
        if column is not None:
            return _not_words(column, values[column])
        if isinstance(values.get(TEXT), str) and values[TEXT].strip():
            return None  # words are what stands between spaces
        return missing_column(values, options.words_column, (*WORD_COLUMNS, TEXT), "words_column")

    def settle(self, rows: Sequence[Row], options: TokenClassificationOptions) -> TokenClassificationOptions:
        if options.scheme != "auto":
            return options
        scheme = tagging.scheme_of(tag for row in rows for tag in self._tags(row.values, options))
        if scheme is None:
            place, odd = next(
                (row.place, tag)
                for row in rows
                for tag in self._tags(row.values, options)
                if tag != tagging.OUTSIDE and not tagging.BIO.fullmatch(tag)
            )
            raise DataError(
                f"{place}: tag {odd!r} is of another scheme than BIO (B-type, I-type, O): convert the tags"
                f" ({AS_THEY_ARE})"
            )
        return options.model_copy(update={"scheme": scheme})

    def reads(self, values: Mapping[str, Any], options: TokenClassificationOptions) -> Iterable[str]:
        words = find_column(values, options.words_column, WORD_COLUMNS) or TEXT
        tags = find_column(values, options.tags_column, TAG_COLUMNS)
        return [words] if tags is None else [words, tags]

    def key(self, values: Mapping[str, Any], options: TokenClassificationOptions) -> str:
        return " ".join(self._words(values, options))

    def stratum(self, values: Mapping[str, Any], options: TokenClassificationOptions) -> str | None:
        # One type of several: most combinations are of a row or two, and one row of each would be held out.
        return next(iter(self.classes(values, options)), "")

    def classes(self, values: Mapping[str, Any], options: TokenClassificationOptions) -> list[str]:
        """Types of entities, or plain tags."""
        tags = self._tags(values, options)
        return sorted({entity.type for entity in tagging.entities(tags)} if _scheme(options) == "bio" else set(tags))

    def labels(self, rows: Sequence[Row], options: TokenClassificationOptions) -> tuple[str, ...]:
        names = tagging.tag_names(self._all_tags(rows, options), _scheme(options))
        return label_kinds.require_classes(self.name, names)

    def _all_tags(self, rows: Sequence[Row], options: TokenClassificationOptions) -> set[str]:
        return {tag for row in rows for tag in self._tags(row.values, options)}

    @staticmethod
    def _words(values: Mapping[str, Any], options: TokenClassificationOptions) -> list[str]:
        column = find_column(values, options.words_column, WORD_COLUMNS)
        return list(values[column]) if column is not None else str(values[TEXT]).split()

    @staticmethod
    def _tags(values: Mapping[str, Any], options: TokenClassificationOptions) -> list[str]:
        return [
            class_names.name_of(tag) for tag in values[find_column(values, options.tags_column, TAG_COLUMNS) or "tags"]
        ]

    def load(self, source: Any, setting: Setting) -> Loaded:
        from transformers import AutoModelForTokenClassification

        names = setting.labels or ("0", "1")
        return encoder.require_offsets(self, encoder.load(source, AutoModelForTokenClassification, names))

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        return encoder.head_modules(model)

    def split(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        (head,) = self.head_modules(model)
        return model.get_submodule(str(model.base_model_prefix)), model.get_submodule(head)

    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        """`labels` are a class at the first token of each word, and IGNORE elsewhere."""
        words, tags = self._words(row.values, setting.options), self._tags(row.values, setting.options)
        classes = class_names.numbers(tags, setting.labels, row)
        encoded, first = self._encode_words(words, processor, setting)
        labels = [IGNORE] * encoded["length"]
        for token, number in zip(first, classes, strict=True):
            if token is not None:
                labels[token] = number
        trained = sum(token is not None for token in first)
        return {**encoded, "labels": labels, "weight": trained, "trained": trained}

    @staticmethod
    def _encode_words(
        words: Sequence[str], processor: Any, setting: Setting
    ) -> tuple[dict[str, Any], list[int | None]]:
        """(encoded, the first token of each word)."""
        longest = setting.sequence_length
        text = " ".join(words)
        encoded = processor(text, truncation=True, max_length=longest + 1, return_offsets_mapping=True)
        truncated = len(encoded["input_ids"]) > longest
        if truncated:
            encoded = processor(text, truncation=True, max_length=longest, return_offsets_mapping=True)
        ids = list(encoded["input_ids"])
        first = tagging.first_tokens(words, encoded["offset_mapping"])
        return {"input_ids": ids, "length": len(ids), "truncated": truncated}, first

    def filler(self, length: int, setting: Setting) -> dict[str, Any]:
        ids, counts = [0] * length, {"length": length, "weight": length, "trained": length}
        return {"input_ids": ids, "labels": list(ids), "truncated": False, **counts}

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting) -> dict[str, Tensor]:
        batch = encoder.input_tensors(examples, processor, setting.sequence_length)
        if "labels" in examples[0]:
            batch["labels"] = pad([e["labels"] for e in examples], IGNORE, most=setting.sequence_length)
        return batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        """Summed cross-entropy over the words of `[B, T]` tokens."""
        from torch.nn.functional import cross_entropy

        labels = batch["labels"]
        logits = model(**encoder.model_inputs(batch)).logits.float()
        summed = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
        return Loss(summed, (labels != IGNORE).sum())

    def predict(self, model: nn.Module, rows: Sequence[Row], processor: Any, setting: Setting) -> list[dict[str, Any]]:
        """`tags` and their `scores`, one for each word, null for words that `train.sequence_length` cut off (or that
        the tokenizer has no token for); in BIO `entities` with `type`, `words`, `start`, `end` (not counted itself)
        and `score`."""
        from pefttool.nn import embedding_offload
        from pefttool.toolkit import truncation

        sentences = [self._words(row.values, setting.options) for row in rows]
        encoded = [self._encode_words(words, processor, setting) for words in sentences]
        truncation.tell(inputs=sum(example["truncated"] for example, _ in encoded))
        device = embedding_offload.device_of(model)
        batch = self.collate([example for example, _ in encoded], processor, setting)
        logits = model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits.float()
        best = logits.softmax(-1).max(-1)
        indices, values = best.indices.tolist(), best.values.tolist()
        found = []
        for i, (words, (_, first)) in enumerate(zip(sentences, encoded, strict=True)):
            tags = [None if token is None else setting.labels[indices[i][token]] for token in first]
            scores = [None if token is None else values[i][token] for token in first]
            found.append(_answer(words, tags, scores, _scheme(setting.options)))
        return found

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        """A word that was cut off counts as one without a tag: its entity is missed."""
        truth = [self._tags(row.values, setting.options) for row in rows]
        given = [p["tags"] for p in predictions]
        return {**tagging.scores(truth, given, _scheme(setting.options)), "loss": loss}

    def preview(self, example: Mapping[str, Any], processor: Any) -> str:
        pieces = processor.convert_ids_to_tokens(example["input_ids"])
        both = zip(pieces, example["labels"], strict=True)
        return " ".join(piece if label == IGNORE else f"{piece}/{label}" for piece, label in both)


def _scheme(options: TokenClassificationOptions) -> Scheme:
    return "plain" if options.scheme == "plain" else "bio"


def _not_words(column: str, value: Any) -> str | None:
    if not isinstance(value, list) or not value or not all(isinstance(word, str) for word in value):
        return f"column {column!r}: found {describe(value)}, expected a list of words"
    empty = next((i for i, word in enumerate(value) if not word.strip()), None)
    return None if empty is None else f"column {column!r}: word {empty} is {value[empty]!r}, expected text"


def _answer(
    words: Sequence[str], tags: Sequence[str | None], scores: Sequence[float | None], scheme: Scheme
) -> dict[str, Any]:
    answer: dict[str, Any] = {"tags": list(tags), "scores": list(scores)}
    if scheme == "bio":
        answer["entities"] = [
            {
                "type": entity.type,
                "words": list(words[entity.start : entity.end]),
                "start": entity.start,
                "end": entity.end,
                "score": fmean(score for score in scores[entity.start : entity.end] if score is not None),
            }
            for entity in tagging.entities(tags)
        ]
    return answer
