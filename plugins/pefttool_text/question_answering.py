"""question-answering: the words of a passage that answer a question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pefttool import Loaded, Loss, Options, Row, Setting, Task
from pefttool.toolkit.columns import describe
from pefttool_text import answer_windows, encoder, squad_scores
from pefttool_text.answer_windows import Answer, Span, Window

if TYPE_CHECKING:
    from torch import Tensor, nn

COLUMNS = ("question", "context")
#: Windows that are predicted together, where the rows of a batch have more.
TOGETHER = 8


class QuestionAnsweringOptions(Options):
    stride: int = Field(128, ge=0, description="tokens that neighbouring windows of a long passage share")
    longest_answer: int = Field(30, ge=1, description="tokens that a predicted answer may have")
    no_answer: Literal["auto", "allowed", "never"] = Field(
        "auto",
        description="whether a passage may hold no answer, as in SQuAD 2; `auto`: if a training row has none",
    )


class QuestionAnswering(Task):
    """The words of a passage that answer a question (SQuAD): extractive, with or without unanswerable questions."""

    name = "question-answering"
    Options = QuestionAnsweringOptions
    primary = ("f1", "max")
    repeatable = True
    judged_by_answers = True  # a long passage is answered over all its windows, and trained in one of them
    peft_task_type = "QUESTION_ANS"
    #: It is learnt in two phases: what kind of words are asked for, then (all at once, after a plateau) which of them.
    #: A slow head makes the first long, a fast one the second. Measured with lora on 60 held-out passages of
    #: example:film-questions' training part, after two epochs in batches of 8: F1 0.99, 0.78 and 0.22 (three seeds) at
    #: the usual rate of heads, 0.98 and 0.95 (two) at three times that, 0.52 (one) at ten times.
    rates: ClassVar[Mapping[str, float]] = {"head_learning_rate": 3.0}
    example: ClassVar[Mapping[str, Any]] = {
        "model": "example:all-minilm-l6-v2",
        "data": {"train": "example:film-questions"},
    }

    def defaults(self) -> Mapping[str, Any]:
        return {"batch_size": 8, "epochs": 3, "sequence_length": 384}

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        if {*COLUMNS, "answers"} <= set(columns) and not any(self._malformed(v) for v in sample):
            return "columns 'question', 'context' and 'answers' (words of the context)"
        return None

    def _malformed(self, values: Mapping[str, Any]) -> str | None:
        return self.check_input(values, None) or _not_answers(values)

    def check_input(self, values: Mapping[str, Any], options: Any) -> str | None:
        for column in COLUMNS:
            if column not in values:
                found = ", ".join(map(repr, values)) or "none"
                return f"found columns {found}, expected 'question' and 'context'"
            if not isinstance(values[column], str) or not values[column].strip():
                return f"column {column!r}: found {describe(values[column])}, expected text"
        return None

    def check_row(self, values: Mapping[str, Any], options: QuestionAnsweringOptions) -> str | None:
        complaint = self._malformed(values)
        if complaint is not None:
            return complaint
        if not values["answers"]["text"] and options.no_answer == "never":
            return "column 'answers': found no answer, which task.no_answer=never forbids"
        for text, start in zip(*_answers(values), strict=True):
            there = values["context"][start : start + len(text)]
            if there != text:
                return f"column 'answers': {describe(text)} at {start}, where the context has {describe(there)}"
        return None

    def settle(self, rows: Sequence[Row], options: QuestionAnsweringOptions) -> QuestionAnsweringOptions:
        if options.no_answer != "auto":
            return options
        allowed = any(not _answers(row.values)[0] for row in rows)
        return options.model_copy(update={"no_answer": "allowed" if allowed else "auto"})

    def reads(self, values: Mapping[str, Any], options: QuestionAnsweringOptions) -> Iterable[str]:
        return (*COLUMNS, "answers.text", "answers.answer_start")

    def key(self, values: Mapping[str, Any], options: QuestionAnsweringOptions) -> str:
        return "\n".join(" ".join(str(values[column]).split()) for column in COLUMNS)

    def load(self, source: Any, setting: Setting) -> Loaded:
        from transformers import AutoModelForQuestionAnswering

        return encoder.require_offsets(self, encoder.load(source, AutoModelForQuestionAnswering))

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        return encoder.head_modules(model)

    def split(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        (head,) = self.head_modules(model)
        return model.get_submodule(str(model.base_model_prefix)), model.get_submodule(head)

    def _windows(self, row: Row, processor: Any, setting: Setting) -> tuple[list[Window], bool]:
        question, context = (str(row.values[column]) for column in COLUMNS)
        longest, stride = setting.sequence_length, setting.options.stride
        return answer_windows.windows(question, context, processor, longest, stride)

    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        """One window that holds the answer, with its first and last token; of several answers the first is trained.

        A row of which no window holds the answer weighs nothing.
        """
        found, truncated = self._windows(row, processor, setting)
        texts, starts = _answers(row.values)
        answer: Span | None = None
        if texts:
            inside = texts[0].strip() or texts[0]  # no token stands for the space around an answer
            start = starts[0] + texts[0].index(inside)
            answer = (start, start + len(inside))
        chosen = answer_windows.choose(found, answer, setting.seed, *(row.values[column] for column in COLUMNS))
        window, (first, last) = chosen or (found[0], (0, 0))
        weight = int(chosen is not None)
        counts = {"weight": weight, "trained": weight, "truncated": truncated}
        return {**window.example, **counts, "start": first, "end": last}

    def filler(self, length: int, setting: Setting) -> dict[str, Any]:
        counts = {"length": length, "weight": 1, "trained": 1}
        return {"input_ids": [0] * length, "truncated": False, "start": 0, "end": 0, **counts}

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting) -> dict[str, Tensor]:
        """Besides the inputs `starts` and `ends`, `[B]` int64: positions of the answer's first and last token."""
        import torch

        batch = encoder.input_tensors(examples, processor, setting.sequence_length)
        if "start" in examples[0]:
            batch |= {f"{side}s": torch.tensor([e[side] for e in examples]) for side in ("start", "end")}
        return batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        """The mean of the cross-entropies of start and end over positions, summed over rows; padding is no position."""
        from torch.nn.functional import cross_entropy

        starts, ends = self._logits(model, batch)
        summed = cross_entropy(starts, batch["starts"], reduction="sum")
        summed = summed + cross_entropy(ends, batch["ends"], reduction="sum")
        return Loss(summed / 2, batch["starts"].new_tensor(len(starts)))

    @staticmethod
    def _logits(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Start and end logits `[B, T]`, float32."""
        output = model(**encoder.model_inputs(batch))
        padding = batch["attention_mask"] == 0
        starts, ends = (
            logits.float().masked_fill(padding, -1e9) for logits in (output.start_logits, output.end_logits)
        )
        return starts, ends

    def predict(self, model: nn.Module, rows: Sequence[Row], processor: Any, setting: Setting) -> list[dict[str, Any]]:
        """`answer`, the characters `start` to `end` (not counted itself) of the context, and `score`: its share among
        the best answers. No answer is an empty one, with null for its place."""
        import torch

        from pefttool.nn import embedding_offload

        parts = [self._windows(row, processor, setting)[0] for row in rows]
        every = [window for windows in parts for window in windows]
        device = embedding_offload.device_of(model)
        starts: list[Tensor] = []
        ends: list[Tensor] = []
        step = max(TOGETHER, len(rows))
        for at in range(0, len(every), step):
            batch = self.collate([window.example for window in every[at : at + step]], processor, setting)
            logits = self._logits(model, {name: tensor.to(device) for name, tensor in batch.items()})
            for found, side in zip((starts, ends), logits, strict=True):
                found.extend(side.cpu())
        answers = []
        for row, windows in zip(rows, parts, strict=True):
            taken = [(starts.pop(0), ends.pop(0)) for _ in windows]
            padded = [torch.nn.utils.rnn.pad_sequence([pair[side] for pair in taken], True) for side in (0, 1)]
            options = setting.options
            best = answer_windows.best_answer(
                windows, padded[0], padded[1], options.longest_answer, options.no_answer == "allowed"
            )
            answers.append(_as_json(best, str(row.values["context"])))
        return answers

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        """`exact_match` and `f1` as SQuAD has them, from 0 to 1."""
        both = [(str(p["answer"]), _answers(row.values)[0]) for p, row in zip(predictions, rows, strict=True)]
        return {
            "exact_match": fmean(squad_scores.exact_match(*pair) for pair in both),
            "f1": fmean(squad_scores.f1(*pair) for pair in both),
            "loss": loss,
        }

    def preview(self, example: Mapping[str, Any], processor: Any) -> str:
        """The window; the trained answer stands between guillemets."""
        ids, start, end = example["input_ids"], example["start"], example["end"] + 1
        before, answer, after = (processor.decode(part) for part in (ids[:start], ids[start:end], ids[end:]))
        return f"{before} «{answer}» {after}"


def _answers(values: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """(texts, their first characters in the context)."""
    return list(values["answers"]["text"]), list(values["answers"]["answer_start"])


def _not_answers(values: Mapping[str, Any]) -> str | None:
    """What keeps column `answers` from being SQuAD's, or None."""
    answers = values.get("answers")
    expected = 'expected {"text": [...], "answer_start": [...]}'
    if answers is None and "answer" in values:
        return f"found column 'answer', expected 'answers', which says where it stands, too: {expected}"
    if not isinstance(answers, Mapping):
        return f"column 'answers': found {describe(answers)}, {expected}"
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return f"column 'answers': found {describe(dict(answers))}, {expected}, both of one length"
    if not all(isinstance(text, str) and text for text in texts):
        return f"column 'answers': found {describe(texts)}, expected texts that are not empty"
    if not all(isinstance(start, int) and not isinstance(start, bool) and start >= 0 for start in starts):
        return f"column 'answers': found {describe(starts)}, expected places in the context, counted from 0"
    return None


def _as_json(answer: Answer, context: str) -> dict[str, Any]:
    """Some tokenizers count the space before a word as its token's: it is no part of the answer."""
    if answer.span is None:
        return {"answer": "", "start": None, "end": None, "score": answer.score}
    start, end = answer.span
    while start < end and context[start].isspace():
        start += 1
    return {"answer": context[start:end], "start": start, "end": end, "score": answer.score}
