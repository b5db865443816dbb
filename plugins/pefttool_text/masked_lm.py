"""masked-lm: fill in hidden tokens of plain text, so that an encoder learns the language of a field."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttool import Facts, Loaded, Loss, ModelError, Options, Problem, Row, Setting, Task
from pefttool.toolkit.columns import describe, find_column, missing_column
from pefttool_text import encoder, masked_head, masking
from pefttool_text.batching import IGNORE, pad

if TYPE_CHECKING:
    from torch import Tensor, nn

TEXT_COLUMNS = ("text", "content", "body")
#: What stands for the tokenizer's own mask in a text to fill in.
WRITTEN = "[MASK]"


class MaskedLMOptions(Options):
    text_column: str | None = Field(
        None, description=f"column with the text; default: the first of {', '.join(TEXT_COLUMNS)}"
    )
    mask_fraction: float = Field(0.15, gt=0, le=1, description="share of the tokens that are hidden")
    top_k: int = Field(5, ge=1, description="tokens that a prediction offers for a mask")


class MaskedLM(Task):
    """Fill in hidden tokens of plain text: domain adaptation of an encoder. Has to be asked for by name."""

    name = "masked-lm"
    Options = MaskedLMOptions
    by_name_only = True  # a column of text alone is causal-lm's
    repeatable = True
    example: ClassVar[Mapping[str, Any]] = {
        "model": "example:all-minilm-l6-v2",
        "data": {"train": "example:python-reference", "max_train_rows": 1000, "max_eval_rows": 200},
    }

    def defaults(self) -> Mapping[str, Any]:
        return {"batch_size": 16, "epochs": 3, "sequence_length": 256}

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        return None

    def check(self, options: MaskedLMOptions, facts: Facts) -> list[Problem]:
        if not facts.output_modules:
            message = f"{facts.architecture} has no output layer over tokens; task 'masked-lm' needs one"
            return [Problem("model", message)]
        return []

    def check_row(self, values: Mapping[str, Any], options: MaskedLMOptions) -> str | None:
        column = find_column(values, options.text_column, TEXT_COLUMNS)
        if column is None:
            return missing_column(values, options.text_column, TEXT_COLUMNS, "text_column")
        if not isinstance(values[column], str) or not values[column].strip():
            return f"column {column!r}: found {describe(values[column])}, expected text"
        return None

    def check_input(self, values: Mapping[str, Any], options: MaskedLMOptions) -> str | None:
        return self.check_row(values, options)

    def reads(self, values: Mapping[str, Any], options: MaskedLMOptions) -> Iterable[str]:
        return [find_column(values, options.text_column, TEXT_COLUMNS) or "text"]

    def key(self, values: Mapping[str, Any], options: MaskedLMOptions) -> str:
        return " ".join(self._text(values, options).split())

    @staticmethod
    def _text(values: Mapping[str, Any], options: MaskedLMOptions) -> str:
        return str(values[find_column(values, options.text_column, TEXT_COLUMNS) or "text"])

    def load(self, source: Any, setting: Setting) -> Loaded:
        from transformers import AutoModelForMaskedLM

        loaded = encoder.load(source, AutoModelForMaskedLM)
        if loaded.processor is not None and loaded.processor.mask_token_id is None:
            raise ModelError(
                f"model {source.path}: its tokenizer has no mask token, which task 'masked-lm' needs; for a model that"
                " continues text use causal-lm"
            )
        model: Any = loaded.model
        setattr(model, masked_head.NEW, masked_head.new_modules(model, source))
        return loaded

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        """The output layers that the pretrained model lacks; none if it was trained as a masked language model."""
        new: tuple[str, ...] = getattr(model, masked_head.NEW, ())
        return new

    def split(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        get_head = getattr(model, "get_output_embeddings")  # noqa: B009
        return model.get_submodule(str(model.base_model_prefix)), get_head()

    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        ids, truncated = self._ids(row, processor, setting)
        masked = self._hide(ids, processor, setting)
        trained = sum(label != IGNORE for label in masked.labels)
        counts = {"length": len(ids), "weight": trained, "trained": trained, "truncated": truncated}
        return {"input_ids": masked.input_ids, "labels": masked.labels, **counts}

    def _ids(self, row: Row, processor: Any, setting: Setting) -> tuple[list[int], bool]:
        text = self._text(row.values, setting.options).replace(WRITTEN, processor.mask_token)
        longest = setting.sequence_length
        ids = list(processor(text, truncation=True, max_length=longest + 1)["input_ids"])
        truncated = len(ids) > longest
        if truncated:
            ids = list(processor(text, truncation=True, max_length=longest)["input_ids"])
        return ids, truncated

    @staticmethod
    def _hide(ids: Sequence[int], processor: Any, setting: Setting) -> masking.Masked:
        special = set(processor.all_special_ids)
        maskable = [i for i, token in enumerate(ids) if token not in special]
        fraction, mask_id = setting.options.mask_fraction, int(processor.mask_token_id)
        return masking.mask(ids, maskable, fraction, mask_id, int(processor.vocab_size), setting.seed)

    def filler(self, length: int, setting: Setting) -> dict[str, Any]:
        trained = max(1, round(length * setting.options.mask_fraction))
        counts = {"length": length, "weight": trained, "trained": trained, "truncated": False}
        return {"input_ids": [0] * length, "labels": [0] * trained + [IGNORE] * (length - trained), **counts}

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting) -> dict[str, Tensor]:
        batch = encoder.input_tensors(examples, processor, setting.sequence_length)
        batch["labels"] = pad([e["labels"] for e in examples], IGNORE, most=setting.sequence_length)
        return batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        """Summed cross-entropy (float32) over the hidden tokens of `[B, T]` ids."""
        from torch.nn.functional import cross_entropy

        labels = batch["labels"]
        asked = labels != IGNORE
        logits = masked_head.logits(model, encoder.model_inputs(batch), asked)
        return Loss(cross_entropy(logits.float(), labels[asked], reduction="sum"), asked.sum())

    def predict(self, model: nn.Module, rows: Sequence[Row], processor: Any, setting: Setting) -> list[dict[str, Any]]:
        """`masks`: for each mask of the text, in order, the likeliest `tokens` with their `scores`; and the `text` with
        the first of them; null for a mask that `train.sequence_length` cut off. A text without a mask is asked as in
        training, with the hidden token as `truth`."""
        from pefttool.nn import embedding_offload
        from pefttool.toolkit import truncation

        questions = [self._question(row, processor, setting) for row in rows]
        truncation.tell(inputs=sum(e["truncated"] for e in questions))
        device = embedding_offload.device_of(model)
        batch = {k: v.to(device) for k, v in self.collate(questions, processor, setting).items()}
        places = pad([e["asked"] for e in questions], 0, most=setting.sequence_length).bool().to(device)
        logits = masked_head.logits(model, encoder.model_inputs(batch), places).float().softmax(-1)
        parts: Sequence[Tensor] = logits.split([sum(e["asked"]) for e in questions])  # type: ignore[no-untyped-call]
        return [self._filled(e, part, processor, setting) for e, part in zip(questions, parts, strict=True)]

    def _question(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        """The row encoded, with `asked`: 1 at the tokens in question; `cut`: how many masks were cut off."""
        ids, truncated = self._ids(row, processor, setting)
        labels = [IGNORE] * len(ids)
        asked = [int(token == processor.mask_token_id) for token in ids]
        text = self._text(row.values, setting.options).replace(WRITTEN, processor.mask_token)
        written = text.count(processor.mask_token)
        if not written:
            masked = self._hide(ids, processor, setting)
            ids, labels = masked.input_ids, masked.labels
            asked = [int(label != IGNORE) for label in labels]
        cut = max(0, written - sum(asked))
        return {"input_ids": ids, "labels": labels, "asked": asked, "cut": cut, "truncated": truncated}

    @staticmethod
    def _filled(question: Mapping[str, Any], scores: Tensor, processor: Any, setting: Setting) -> dict[str, Any]:
        """`scores` are probabilities, one row of `[N, V]` for each token in question."""
        ids, labels = list(question["input_ids"]), question["labels"]
        masks: list[dict[str, Any] | None] = []
        places = [i for i, asked in enumerate(question["asked"]) if asked]
        best = scores.topk(min(setting.options.top_k, scores.shape[-1]))
        for place, tokens, values in zip(places, best.indices.tolist(), best.values.tolist(), strict=True):
            known = {} if labels[place] == IGNORE else {"truth": processor.decode([labels[place]]).strip()}
            masks.append({"tokens": [processor.decode([t]).strip() for t in tokens], "scores": values, **known})
            ids[place] = tokens[0]
        masks += [None] * question["cut"]
        return {"text": processor.decode(ids, skip_special_tokens=True), "masks": masks}

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        """`perplexity` is that of the hidden tokens."""
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def preview(self, example: Mapping[str, Any], processor: Any) -> str:
        """The text as the model sees it; behind each hidden token what it is asked for, between guillemets."""
        pieces = []
        for token, label in zip(example["input_ids"], example["labels"], strict=True):
            asked = "" if label == IGNORE else f"«{processor.decode([label]).strip()}»"
            pieces.append(f"{processor.decode([token]).strip()}{asked}")
        return " ".join(pieces)
