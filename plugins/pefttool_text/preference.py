"""preference: prefer one answer to another (DPO), without a reward model and without a second copy of the base."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttool import DataError, Facts, Loaded, Loss, Problem, Row, Setting
from pefttool_text import chat_masks, chat_rows, chat_template, packed, preference_rows
from pefttool_text.batching import IGNORE, attention_mask, pad, pad_id
from pefttool_text.borders import Tokens, opening
from pefttool_text.chat_rows import Conversation
from pefttool_text.chat_template import Template, TemplateOptions
from pefttool_text.chat_turns import Turn
from pefttool_text.language_model import LanguageModel, counted
from pefttool_text.preference_loss import Kind, log_probabilities, pair_losses
from pefttool_text.preference_rows import Preference

if TYPE_CHECKING:
    from torch import Tensor, nn

REFERENCE = ("reference_chosen", "reference_rejected")
COLUMNS = ("input_ids", "labels")


class PreferenceOptions(TemplateOptions):
    prompt_column: str | None = Field(None, description="column with the prompt; default: a usual name")
    chosen_column: str | None = Field(None, description="column with the preferred answer; default: `chosen`")
    rejected_column: str | None = Field(None, description="column with the other answer; default: `rejected`")
    loss: Kind = Field(
        "sigmoid", description="`sigmoid`: DPO; `hinge`: SLiC's margin; `ipo`: a squared distance, over mean tokens"
    )
    beta: float = Field(0.1, gt=0, description="how dear it is to move away from the base; for `ipo` 1 / (2 beta) is"
                        " the margin that is aimed at")  # fmt: skip
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="share of pairs that are thought to be the wrong way round (`sigmoid` only)"
    )


class PreferenceTuning(LanguageModel):
    """Prefer one answer to another (DPO): rows with a prompt, a chosen and a rejected answer."""

    name = "preference"
    converses = True
    Options = PreferenceOptions
    primary = ("loss", "min")
    #: Published recipes go ten to fifty times slower than the same adapter does on the answers themselves.
    rates: ClassVar[Mapping[str, float]] = {"learning_rate": 0.1, "head_learning_rate": 0.1}

    def defaults(self) -> Mapping[str, Any]:
        return {"batch_size": 8, "epochs": 1, "sequence_length": 1024}

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        if any(self.check_row(values, PreferenceOptions()) is not None for values in sample):
            return None
        return "a chosen and a rejected answer to each prompt"

    def load(self, source: Any, setting: Setting) -> Loaded:
        loaded = super().load(source, setting)
        if getattr(loaded.processor, "chat_template", None):
            chat_template.require_prompt(loaded.processor)
        return loaded

    def check(self, options: PreferenceOptions, facts: Facts) -> list[Problem]:
        problems = super().check(options, facts)
        if options.label_smoothing and options.loss != "sigmoid":
            message = f"{options.label_smoothing} is for task.loss 'sigmoid', and it is {options.loss!r}; drop it"
            problems.append(Problem("task.label_smoothing", message))
        return problems

    def check_row(self, values: Mapping[str, Any], options: PreferenceOptions) -> str | None:
        try:
            preference_rows.find(values, options)
        except ValueError as error:
            return str(error)
        return None

    def check_input(self, values: Mapping[str, Any], options: PreferenceOptions) -> str | None:
        try:
            self._question(values, options)
        except ValueError as error:
            return str(error)
        return None

    @staticmethod
    def _question(values: Mapping[str, Any], options: PreferenceOptions) -> tuple[Conversation, bool]:
        """(prompt, whether it was one text) of a row that need not have answers."""
        try:
            preference = preference_rows.find(values, options)
        except ValueError:
            text = values.get("text")
            if isinstance(text, str) and text.strip() and not {options.prompt_column or "prompt"} & set(values):
                return Conversation([{"role": "user", "content": text}]), True
            turns, plain = preference_rows.question(values, options)
            return Conversation(turns, tools=chat_rows.tools(values)), plain
        return Conversation(preference.prompt, tools=preference.tools), preference.plain

    def reads(self, values: Mapping[str, Any], options: PreferenceOptions) -> Iterable[str]:
        return preference_rows.reads(values, options)

    def key(self, values: Mapping[str, Any], options: PreferenceOptions) -> str:
        found = preference_rows.find(values, options)
        return "\n".join(chat_rows.key(found.answered(answer)) for answer in (found.chosen, found.rejected))

    def encoding_options(self, options: PreferenceOptions, processor: Any) -> PreferenceOptions:
        return chat_template.without_date(options, processor)

    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        """The conversation with the chosen answer, and that with the rejected one behind it; each may have half of
        `sequence_length`. `chosen` is the length of the first; `weight` is 1, a pair."""
        preference = preference_rows.find(row.values, setting.options)
        most = setting.sequence_length // 2
        halves = []
        for answer in (preference.chosen, preference.rejected):
            ids, labels = _tokens(preference, answer, processor, row.place, setting.options.date)
            halves.append(counted(ids[:most], labels[:most], truncated=len(ids) > most))
        return _pair(*halves)

    def untrained(self, example: Mapping[str, Any], processor: Any, setting: Setting) -> str:
        if not example["truncated"]:
            return "one of its answers is empty, or both are the same in tokens"
        return f"train.sequence_length={setting.sequence_length} cuts off an answer, or where the two differ"

    def filler(self, length: int, setting: Setting) -> dict[str, Any]:
        half = max(2, length // 2)
        one = counted([0] * half, [0] * half, truncated=False)
        return {**_pair(one, one), "weight": 1, **dict.fromkeys(REFERENCE, 0.0)}

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting) -> dict[str, Any]:
        """Two sequences for each row, one behind the other; `reference` is `[B, 2]`, of the base."""
        import torch

        halves, most = _halves(examples), setting.sequence_length // 2
        if setting.packing:
            batch = packed.collate(halves)
        else:
            ids, labels = ([half[name] for half in halves] for name in COLUMNS)
            batch = {
                "input_ids": pad(ids, pad_id(processor), most=most),
                "attention_mask": attention_mask(ids, most=most),
                "labels": pad(labels, IGNORE, most=most),
            }
        if REFERENCE[0] in examples[0]:
            batch["reference"] = torch.tensor([[e[name] for name in REFERENCE] for e in examples])
        return batch

    def prepare(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Mapping[str, Tensor]:
        """The reference: what the base thinks of both answers."""
        sums, _ = log_probabilities(model, batch)
        return dict(zip(REFERENCE, sums.view(-1, 2).unbind(1), strict=True))

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        """Sum over pairs; `outputs` are rewards and log-probabilities, `[B, 2, 2]`, the chosen answer's first."""
        import torch

        options, reference = setting.options, batch["reference"]
        policy, numbers = (values.view(-1, 2) for values in log_probabilities(model, batch))
        rewards = options.beta * (policy - reference)
        each = (policy / numbers, reference / numbers) if options.loss == "ipo" else (policy, reference)
        losses = pair_losses(*each, options.loss, options.beta, options.label_smoothing)
        return Loss(losses.sum(), reference.new_tensor(len(reference)), torch.stack([rewards, policy], 1).detach())

    def decode(self, outputs: Tensor, setting: Setting) -> list[dict[str, Any]]:
        found = []
        for (chosen, rejected), (p_chosen, p_rejected) in outputs.float().tolist():
            likelier = "chosen" if p_chosen > p_rejected else "rejected"
            found.append({"reward_chosen": chosen, "reward_rejected": rejected, "likelier": likelier})
        return found

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        """`reward_accuracy`: how often the chosen answer gained more over the base; `likelihood_accuracy`: how often it
        is the likelier one of the two. Nothing gained counts as half."""
        margins = [p["reward_chosen"] - p["reward_rejected"] for p in predictions]
        count = len(predictions)
        return {
            "loss": loss,
            "reward_accuracy": sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins) / count,
            "margin": sum(margins) / count,
            "reward_chosen": sum(p["reward_chosen"] for p in predictions) / count,
            "likelihood_accuracy": sum(p["likelier"] == "chosen" for p in predictions) / count,
        }

    def check_packing(
        self, model: nn.Module, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting
    ) -> str | None:
        return packed.check(model, _halves(examples[:2]))

    def prompt_ids(self, row: Row, processor: Any, setting: Setting) -> list[int]:
        prompt, plain = self._question(row.values, setting.options)
        if plain and not getattr(processor, "chat_template", None):
            return opening(processor, prompt.turns[0]["content"])
        text = chat_template.written(processor, prompt, setting.options.date, row.place)
        return list(processor(text, add_special_tokens=False)["input_ids"])

    def answer(self, row: Row, text: str) -> dict[str, Any]:
        return {"answer": text.strip()}

    def check_encoded(self, example: Mapping[str, Any], processor: Any) -> str | None:
        halves = ({**half, "truncated": example["truncated"]} for half in _halves([example]))
        complaints = [super(PreferenceTuning, self).check_encoded(half, processor) for half in halves]
        return complaints[0] or complaints[1]

    def preview(self, example: Mapping[str, Any], processor: Any) -> str:
        chosen, rejected = (super(PreferenceTuning, self).preview(half, processor) for half in _halves([example]))
        return f"chosen: {chosen}\nrejected: {rejected}"


def _tokens(
    preference: Preference, answer: Turn, processor: Any, place: str, date: datetime.date
) -> tuple[list[int], list[int]]:
    """(ids, labels) of the conversation with this answer, which alone is trained.

    One text as prompt is a user's message where the model has a chat template, else text that the answer continues.
    """
    if preference.plain and not getattr(processor, "chat_template", None):
        before, text = preference.prompt[0]["content"], answer["content"]
        tokens, end = Tokens(processor, f"{before}{text}", special=True), processor.eos_token_id
        try:
            start = tokens.start(len(before))
        except ValueError as error:
            raise DataError(f"{place}: {error}") from error
        ids = tokens.ids if end is None or tokens.ids[-1:] == [end] else [*tokens.ids, end]
        return ids, [*[IGNORE] * start, *ids[start:]]
    template = Template(processor, date, place, preference.tools)
    ids, labels, _ = chat_masks.masked(template, preference.answered(answer))
    return ids, labels


def _pair(chosen: Mapping[str, Any], rejected: Mapping[str, Any]) -> dict[str, Any]:
    """Both, one behind the other. Where what was left of them is the same, there is nothing to prefer."""
    trained = (chosen["trained"], rejected["trained"])
    return {
        **{name: [*chosen[name], *rejected[name]] for name in COLUMNS},
        "chosen": len(chosen["input_ids"]),
        "length": chosen["length"] + rejected["length"],
        "trained": sum(trained),
        "weight": int(0 not in trained and chosen["input_ids"] != rejected["input_ids"]),
        "truncated": chosen["truncated"] or rejected["truncated"],
    }


def _halves(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The sequences of these pairs: chosen, rejected, chosen, rejected, ..."""
    return [
        {name: e[name][part] for name in COLUMNS}
        for e in examples
        for part in (slice(e["chosen"]), slice(e["chosen"], None))
    ]
