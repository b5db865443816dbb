"""seq2seq: one text to another (translation, summarisation) with encoder-decoder models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pefttool import Caution, Facts, Loaded, Loss, ModelError, Options, Problem, Row, Setting, Task
from pefttool_text import languages, pair_rows, text_columns, text_scores
from pefttool_text.batching import IGNORE, attention_mask, kind_of, pad, pad_id
from pefttool_text.text_scores import METRICS, Metric

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Characters that a warning names.
SHOWN = 5


class Seq2SeqOptions(Options):
    source_column: str | None = Field(None, description="column with the text to read; default: a usual name")
    target_column: str | None = Field(None, description="column with the text to write; default: a usual name")
    source_lang: str | None = Field(
        None,
        description="language to read, as the column (or the key in `translation`) is called; default: the first of"
        " two. Multilingual tokenizers are told: they have to know it by this name, or by one that begins so (en_XX)",
    )
    target_lang: str | None = Field(None, description="language to write, likewise; default: the other of two")
    prefix: str = Field("", description="text put before every source, such as `summarize: ` for T5")
    metrics: tuple[Metric, ...] = Field(
        METRICS, description="of the generated answers; chrf is always there: it decides which checkpoint is best"
    )


class Seq2Seq(Task):
    """One text to another (translation, summarisation) with an encoder-decoder model."""

    name = "seq2seq"
    Options = Seq2SeqOptions
    primary = ("chrf", "max")
    generative = True
    repeatable = True
    judged_by_answers = True
    peft_task_type = "SEQ_2_SEQ_LM"

    def defaults(self) -> Mapping[str, Any]:
        return {"batch_size": 16, "epochs": 3, "sequence_length": 512}

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        reasons = {pair_rows.recognise(values) for values in sample}
        return reasons.pop() if len(reasons) == 1 else None

    def recognise_model(self, config: Any) -> str | None:
        if kind_of(config) == "encoder-decoder":
            return f"{config.model_type} turns one text into another"
        return None

    def check_row(self, values: Mapping[str, Any], options: Seq2SeqOptions) -> str | None:
        return pair_rows.complaint(values, options, answered=True)

    def check_input(self, values: Mapping[str, Any], options: Seq2SeqOptions) -> str | None:
        return pair_rows.complaint(values, options, answered=False)

    def settle(self, rows: Sequence[Row], options: Seq2SeqOptions) -> Seq2SeqOptions:
        """The languages of most rows, in their order, are those of all."""
        found = Counter(pair for row in rows if (pair := pair_rows.languages(row.values, options)) is not None)
        if not found:
            return options
        source, target = found.most_common(1)[0][0]
        return options.model_copy(update={"source_lang": source, "target_lang": target})

    def reads(self, values: Mapping[str, Any], options: Seq2SeqOptions) -> Iterable[str]:
        return pair_rows.reads(values, options)

    def key(self, values: Mapping[str, Any], options: Seq2SeqOptions) -> str:
        return " ".join(str(pair_rows.find(values, options, answered=False).source).split())

    def check(self, options: Seq2SeqOptions, facts: Facts) -> list[Problem]:
        lacking = text_scores.missing()
        return [Problem("task.metrics", lacking)] if lacking else []

    def load(self, source: Any, setting: Setting) -> Loaded:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        if not getattr(source.config, "is_encoder_decoder", False):
            raise ModelError(
                f"task 'seq2seq' needs an encoder-decoder model (T5, BART, Marian), and {source.config.model_type} is"
                " none: use --task chat or causal-lm with a decoder"
            )
        tokenizer = source.processor(AutoTokenizer)
        asked = not source.abstract  # in a plan rows have not been looked at yet, which may say it
        languages.tell(tokenizer, setting.options.source_lang, setting.options.target_lang, asked)
        return Loaded(source.model(AutoModelForSeq2SeqLM, **_special_tokens(source.config, tokenizer)), tokenizer)

    def split(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        get_base, get_head = getattr(model, "get_decoder"), getattr(model, "get_output_embeddings")  # noqa: B009
        return get_base(), get_head()

    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        """`input_ids` of the source and `labels` of the target, which share `sequence_length`.

        Where they do not fit, the target keeps up to half of it, and more if the source leaves room.
        """
        pair, room = pair_rows.find(row.values, setting.options), setting.sequence_length
        text = f"{setting.options.prefix}{pair.source}"
        ids, labels = list(processor(text)["input_ids"]), _target_ids(str(pair.target), processor)
        broken = "\n" in pair.target and "\n" not in processor.decode(labels)
        unknown = _unknown(str(pair.target), labels, processor)
        truncated = len(ids) + len(labels) > room
        if truncated:
            labels = _cut(labels, max(room - len(ids), room // 2), processor)
            ids = list(processor(text, truncation=True, max_length=max(1, room - len(labels)))["input_ids"])
        return {**_counted(ids, labels, truncated), "loses_breaks": broken, "unknown": unknown}

    def filler(self, length: int, setting: Setting) -> dict[str, Any]:
        half = max(1, length // 2)
        return _counted([0] * (length - half), [0] * half, truncated=False)

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting) -> dict[str, Tensor]:
        ids, most = [e["input_ids"] for e in examples], setting.sequence_length
        return {
            "input_ids": pad(ids, pad_id(processor), most=most),
            "attention_mask": attention_mask(ids, most=most),
            "labels": pad([e["labels"] for e in examples], IGNORE, most=most),
        }

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        """Sum of cross-entropies (float32, nothing smoothed) over the target's tokens; labels are `[B, T]`."""
        from torch.nn.functional import cross_entropy

        labels = batch["labels"]
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=_shifted(model, labels),
            use_cache=False,
        ).logits
        summed = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
        return Loss(summed, (labels != IGNORE).sum())

    def predict(self, model: nn.Module, rows: Sequence[Row], processor: Any, setting: Setting) -> list[dict[str, Any]]:
        import torch

        from pefttool.nn import embedding_offload
        from pefttool.toolkit import truncation

        options, most = setting.options, setting.sequence_length
        texts = [f"{options.prefix}{pair_rows.find(row.values, options, answered=False).source}" for row in rows]
        encoded = [text_columns.encode((text,), processor, most) for text in texts]
        ids = [e["input_ids"] for e in encoded]
        device = embedding_offload.device_of(model)
        with torch.no_grad():
            out = model.generate(  # type: ignore[operator]
                input_ids=pad(ids, pad_id(processor), multiple=1).to(device),
                attention_mask=attention_mask(ids, multiple=1).to(device),
                **_generation(model, processor, setting),
            )
        written = out[:, 1:]  # behind the token that a decoder starts with, which some models end texts with, too
        cut = sum(e["truncated"] for e in encoded)
        truncation.tell(cut, truncation.unended(written, model, setting.generation.get("max_new_tokens")))
        return [{"target": processor.decode(tokens, skip_special_tokens=True).strip()} for tokens in out]

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        options = setting.options
        expected = [str(pair_rows.find(row.values, options).target) for row in rows]
        given = [str(p["target"]) for p in predictions]
        return {**text_scores.scores(given, expected, options.metrics, options.target_lang), "loss": loss}

    def check_encoded(self, example: Mapping[str, Any], processor: Any) -> str | None:
        end = _end_of(processor)
        if end is not None and not example["truncated"] and not languages.target_end(example["labels"], end, processor):
            last = processor.decode([example["labels"][-1]])
            return f"the target's last token is {last!r}, not the one that ends texts: the model would not stop"
        return None

    def noted(
        self, train: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]], setting: Setting
    ) -> Sequence[str]:
        """T5's tokenizer makes spaces of line breaks, and does not know `{` and `<`: no answer will have any. And
        answers end at `max_new_tokens`, and are then compared with targets that do not."""
        found, of = [], f"of {len(train)} training targets have"
        broken = sum(bool(example["loses_breaks"]) for example in train)
        if broken:
            found.append(
                Caution(
                    f"{broken} {of} line breaks, which this model's tokenizer drops: answers will be in one line;"
                    " write breaks as a mark of your own, such as ' | ', or use a model that knows them"
                )
            )
        unknown = [chr(example["unknown"]) for example in train if example["unknown"]]
        if unknown:
            shown = ", ".join(map(repr, sorted(set(unknown))[:SHOWN]))
            found.append(
                Caution(
                    f"{len(unknown)} {of} characters that this model's tokenizer does not know, such as {shown}:"
                    " answers will not have them; write others in their place, or use a model that knows them"
                )
            )
        most, lengths = int(setting.generation["max_new_tokens"]), [int(e["trained"]) for e in held_out]
        longer, longest = sum(length > most for length in lengths), max(lengths, default=0)
        if longer:
            found.append(
                Caution(
                    f"{longer} of {len(lengths)} held-out targets are longer than answers may be (the longest has"
                    f" {longest} tokens, generation.max_new_tokens is {most}): answers are cut there, and judged as"
                    f" they are; raise it with -o generation.max_new_tokens={longest}"
                )
            )
        return found

    def preview(self, example: Mapping[str, Any], processor: Any) -> str:
        """The source as the model reads it, and what it is trained to write between guillemets."""
        return f"{processor.decode(example['input_ids'])} -> «{processor.decode(example['labels'])}»"


def _counted(ids: list[int], labels: list[int], truncated: bool) -> dict[str, Any]:
    trained = len(labels)
    return {
        "input_ids": ids,
        "labels": labels,
        "length": len(ids) + trained,
        "trained": trained,
        "weight": trained,
        "truncated": truncated,
    }


def _end_of(processor: Any) -> int | None:
    """The token that ends a text; BERT's tokenizer calls it a separator."""
    for name in ("eos_token_id", "sep_token_id"):
        end = getattr(processor, name, None)
        if end is not None:
            return int(end)
    return None


def _target_ids(text: str, processor: Any) -> list[int]:
    """The target's tokens as its side of the tokenizer makes them (Marian has two vocabularies), its end marked."""
    ids, end = list(processor(text_target=text)["input_ids"]), _end_of(processor)
    return ids if end is None or languages.target_end(ids, end, processor) else [*ids, end]


def _unknown(text: str, labels: Sequence[int], processor: Any) -> int:
    """The first character that was lost of a target with tokens for what is unknown; 0 where nothing was."""
    if getattr(processor, "unk_token_id", None) not in labels:
        return 0
    known = {*processor.decode(labels, skip_special_tokens=True).casefold()}
    lost = (c for c in text if not c.isspace() and c.casefold() not in known)
    return ord(next(lost, processor.unk_token[0]))


def _cut(labels: list[int], most: int, processor: Any) -> list[int]:
    """A target that is too long loses its end mark, too, unless languages are told: mBART starts with its last one."""
    end = _end_of(processor)
    kept = languages.target_end(labels, end, processor) if end is not None and languages.codes(processor) else 0
    return [*labels[: max(1, most - kept)], *labels[len(labels) - kept :]]


def _shifted(model: Any, labels: Tensor) -> Tensor:
    """What the decoder reads of labels `[B, T]`: the start token first, padding for -100; int64 `[B, T]`.

    By the model's own rule. M2M100, NLLB and Blenderbot have none but in their `forward`, which is this one.
    """
    while not hasattr(model, "config") and hasattr(model, "module"):  # a wrapper for several processes
        model = model.module
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shift is not None:
        ids: Tensor = shift(labels=labels.clone())  # FSMT's rule writes into what it is given
        return ids
    ids = labels.roll(1, dims=1)
    ids[:, 0] = model.config.decoder_start_token_id
    return ids.masked_fill(ids == IGNORE, model.config.pad_token_id)


def _special_tokens(config: Any, tokenizer: Any) -> dict[str, int]:
    """Where texts start, end and are filled up, for configs that do not say: of a warm-started EncoderDecoderModel."""
    if tokenizer is None:
        return {}
    start = next((i for n in ("cls_token_id", "bos_token_id") if (i := getattr(tokenizer, n, None)) is not None), None)
    known = {
        "decoder_start_token_id": start if start is not None else pad_id(tokenizer),
        "pad_token_id": pad_id(tokenizer),
        "eos_token_id": _end_of(tokenizer),
    }
    return {n: value for n, value in known.items() if value is not None and getattr(config, n, None) is None}


def _generation(model: Any, processor: Any, setting: Setting) -> dict[str, Any]:
    """What `generate` is called with: the run's settings, and the special tokens that the model is configured with."""
    given = dict(setting.generation)
    if not given.get("do_sample"):
        given = {k: v for k, v in given.items() if k not in ("temperature", "top_p")}
    for name in ("decoder_start_token_id", "eos_token_id"):
        if getattr(model.generation_config, name, None) is None and getattr(model.config, name, None) is not None:
            given[name] = getattr(model.config, name)
    if languages.codes(processor):
        given["decoder_start_token_id"] = _start(model, processor)
        given |= languages.first_token(processor, setting.options.target_lang, given["decoder_start_token_id"])
    return {**given, "pad_token_id": pad_id(processor), "max_length": None}  # the model's own, which would be warned of


def _start(model: Any, processor: Any) -> int:
    """The token that the decoder is shown first in training."""
    import torch

    return int(_shifted(model, torch.tensor([_target_ids("a", processor)]))[0, 0])
