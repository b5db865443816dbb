"""seq2seq: one text to another (translation, summarisation) with encoder-decoder models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pefttool import Facts, Loaded, Loss, ModelError, Options, Problem, Row, Setting, Task
from pefttool_text import pair_rows, text_columns, text_scores
from pefttool_text.batching import IGNORE, attention_mask, kind_of, pad, pad_id
from pefttool_text.text_scores import METRICS, Metric

if TYPE_CHECKING:
    from torch import Tensor, nn


class Seq2SeqOptions(Options):
    source_column: str | None = Field(None, description="column with the text to read; default: a usual name")
    target_column: str | None = Field(None, description="column with the text to write; default: a usual name")
    source_lang: str | None = Field(
        None,
        description="language to read, as the column (or the key in `translation`) is called; default: the first of"
        " two. Multilingual tokenizers are told, where they know it by this name",
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
        _tell_languages(tokenizer, setting.options)
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
        truncated = len(ids) + len(labels) > room
        if truncated:
            labels = labels[: max(room - len(ids), room // 2)]
            ids = list(processor(text, truncation=True, max_length=max(1, room - len(labels)))["input_ids"])
        return {**_counted(ids, labels, truncated), "loses_breaks": broken}

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
        """Sum of cross-entropies (float32, nothing smoothed) over the target's tokens; labels are `[B, T]`.

        The decoder reads the labels as the model's own `shift` has them: start token first, padding for -100.
        """
        from torch.nn.functional import cross_entropy

        labels = batch["labels"]
        shift = getattr(_bare(model), "prepare_decoder_input_ids_from_labels")  # noqa: B009
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=shift(labels=labels),
            use_cache=False,
        ).logits
        summed = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
        return Loss(summed, (labels != IGNORE).sum())

    def predict(self, model: nn.Module, rows: Sequence[Row], processor: Any, setting: Setting) -> list[dict[str, Any]]:
        import torch

        from pefttool import cuts, host_tables

        options, most = setting.options, setting.sequence_length
        texts = [f"{options.prefix}{pair_rows.find(row.values, options, answered=False).source}" for row in rows]
        encoded = [text_columns.encode((text,), processor, most) for text in texts]
        ids = [e["input_ids"] for e in encoded]
        device = host_tables.device(model)
        with torch.no_grad():
            out = model.generate(  # type: ignore[operator]
                input_ids=pad(ids, pad_id(processor), multiple=1).to(device),
                attention_mask=attention_mask(ids, multiple=1).to(device),
                **_generation(model, processor, setting),
            )
        written = out[:, 1:]  # behind the token that a decoder starts with, which some models end texts with, too
        cut = sum(e["truncated"] for e in encoded)
        cuts.tell(cut, cuts.unended(written, model, setting.generation.get("max_new_tokens")))
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
        if end is not None and not example["truncated"] and example["labels"][-1] != end:
            last = processor.decode([example["labels"][-1]])
            return f"the target's last token is {last!r}, not the one that ends texts: the model would not stop"
        return None

    def noted(
        self, train: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]], setting: Setting
    ) -> Sequence[str]:
        """T5's tokenizer makes spaces of line breaks: no answer will have any. And answers end at `max_new_tokens`, and
        are then compared with targets that do not."""
        found, broken = [], sum(bool(example["loses_breaks"]) for example in train)
        if broken:
            found.append(
                f"warning: {broken} of {len(train)} training targets have line breaks, which this model's tokenizer"
                " drops: answers will be in one line; write breaks as a mark of your own, such as ' | ', or use a model"
                " that knows them"
            )
        most, lengths = int(setting.generation["max_new_tokens"]), [int(e["trained"]) for e in held_out]
        longer, longest = sum(length > most for length in lengths), max(lengths, default=0)
        if longer:
            found.append(
                f"warning: {longer} of {len(lengths)} held-out targets are longer than answers may be (the longest has"
                f" {longest} tokens, generation.max_new_tokens is {most}): answers are cut there, and judged as they"
                f" are; raise it with -o generation.max_new_tokens={longest}"
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
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _bare(model: Any) -> Any:
    """The model beneath a wrapper for several processes."""
    while not hasattr(model, "prepare_decoder_input_ids_from_labels") and hasattr(model, "module"):
        model = model.module
    return model


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


def _tell_languages(tokenizer: Any, options: Seq2SeqOptions) -> None:
    """mBART, NLLB and M2M100 write the language before the text, where they know it by the name that is given."""
    for attribute, language in (("src_lang", options.source_lang), ("tgt_lang", options.target_lang)):
        if language is not None and hasattr(tokenizer, attribute):
            known = tokenizer.convert_tokens_to_ids(language) not in (None, tokenizer.unk_token_id)
            if known or language in getattr(tokenizer, "lang_code_to_token", {}):
                setattr(tokenizer, attribute, language)


def _generation(model: Any, processor: Any, setting: Setting) -> dict[str, Any]:
    """What `generate` is called with: the run's settings, and the special tokens that the model is configured with."""
    given = dict(setting.generation)
    if not given.get("do_sample"):
        given = {k: v for k, v in given.items() if k not in ("temperature", "top_p")}
    for name in ("decoder_start_token_id", "eos_token_id"):
        if getattr(model.generation_config, name, None) is None and getattr(model.config, name, None) is not None:
            given[name] = getattr(model.config, name)
    target = setting.options.target_lang
    if target is not None and getattr(processor, "tgt_lang", None) == target:
        given["forced_bos_token_id"] = (
            processor.get_lang_id(target)
            if hasattr(processor, "get_lang_id")
            else processor.convert_tokens_to_ids(target)
        )
    return {**given, "pad_token_id": pad_id(processor)}
