"""What causal-lm and chat share: next-token loss over labelled positions, collation, generation, perplexity."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttool import Facts, Loaded, Loss, Problem, Row, Setting, Task
from pefttool.toolkit import decoders
from pefttool_text import ends, output_layer, packed
from pefttool_text.batching import IGNORE, attention_mask, pad, pad_id

if TYPE_CHECKING:
    from torch import Tensor, nn


class LanguageModel(Task):
    """A decoder that predicts the next token wherever `labels` is not -100."""

    generative = True
    packs = True
    repeatable = True
    allows_added_positions = True
    peft_task_type = "CAUSAL_LM"

    def defaults(self) -> Mapping[str, Any]:
        return {"batch_size": 8, "epochs": 2, "sequence_length": 512}

    def check(self, options: Any, facts: Facts) -> list[Problem]:
        if not facts.output_modules:
            return [
                Problem(
                    "model",
                    f"{facts.architecture} has no output layer over tokens; task {self.name!r} needs a"
                    " causal language model",
                )
            ]
        return []

    def load(self, source: Any, setting: Setting) -> Loaded:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        decoders.require(source.config, self.name)
        loaded = Loaded(source.model(AutoModelForCausalLM), source.processor(AutoTokenizer))
        if loaded.processor is not None:
            ends.note(loaded.processor, source.path, source.config)
        return loaded

    def split(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        get_base, get_head = getattr(model, "get_decoder"), getattr(model, "get_output_embeddings")  # noqa: B009
        return get_base(), get_head()

    def filler(self, length: int, setting: Setting) -> dict[str, Any]:
        return counted([0] * length, [0] * length, truncated=False)

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting) -> dict[str, Tensor]:
        if setting.packing:
            return packed.collate(examples)
        ids, most = [e["input_ids"] for e in examples], setting.sequence_length
        return {
            "input_ids": pad(ids, pad_id(processor), most=most),
            "attention_mask": attention_mask(ids, most=most),
            "labels": pad([e["labels"] for e in examples], IGNORE, most=most),
        }

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        """Sum of cross-entropies (float32) over the trained tokens of `[B, T]` ids, or of packed `[1, T]`."""
        trained = (batch["labels"][:, 1:] != IGNORE).sum()
        chunked = output_layer.summed_loss(model, batch)
        return Loss(_from_logits(model, batch) if chunked is None else chunked, trained)

    def check_packing(
        self, model: nn.Module, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting
    ) -> str | None:
        return packed.check(model, examples)

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def stops(self, processor: Any) -> Sequence[int]:
        return sorted(ends.of(processor))

    @abstractmethod
    def prompt_ids(self, row: Row, processor: Any, setting: Setting) -> list[int]:
        """The tokens that the model is asked to continue."""

    @abstractmethod
    def answer(self, row: Row, text: str) -> dict[str, Any]:
        """The JSON object for one generated continuation, with the blanks around it."""

    def predict(self, model: nn.Module, rows: Sequence[Row], processor: Any, setting: Setting) -> list[dict[str, Any]]:
        import torch

        from pefttool.nn import embedding_offload
        from pefttool.toolkit import truncation

        whole = [self.prompt_ids(row, processor, setting) for row in rows]
        prompts = [prompt[-setting.sequence_length :] for prompt in whole]
        device = embedding_offload.device_of(model)
        # Generation continues at the right edge, so prompts are padded on the left.
        ids = pad([p[::-1] for p in prompts], pad_id(processor), multiple=1).flip(1).to(device)
        mask = attention_mask(prompts, multiple=1).flip(1).to(device)
        generation: dict[str, Any] = {"max_length": None}  # the model's own, which transformers would warn of
        generation |= {
            k: v
            for k, v in setting.generation.items()
            if k not in ("temperature", "top_p") or setting.generation.get("do_sample")
        }
        stops = ends.of_model(model, processor)
        if stops:  # what was learnt to be the end, whether or not the model's own settings say so
            generation["eos_token_id"] = stops
        with torch.no_grad():
            out = model.generate(input_ids=ids, attention_mask=mask, pad_token_id=pad_id(processor), **generation)  # type: ignore[operator]
        new = out[:, ids.shape[1] :]
        cut = sum(len(prompt) > setting.sequence_length for prompt in whole)
        truncation.tell(cut, truncation.unended(new, model, generation.get("max_new_tokens"), stops))
        return [
            self.answer(row, _continuation(prompt, tokens.tolist(), processor))
            for row, prompt, tokens in zip(rows, prompts, new, strict=True)
        ]

    def check_encoded(self, example: Mapping[str, Any], processor: Any) -> str | None:
        ids, bos, eos, end = example["input_ids"], processor.bos_token_id, processor.eos_token_id, ends.of(processor)
        if bos is not None and bos != eos and ids[:2] == [bos, bos]:
            return (
                f"the text starts with two {processor.bos_token!r} tokens: the data or the chat template"
                " already writes one; remove it"
            )
        trained = [i for i, label in enumerate(example["labels"]) if label != IGNORE]
        if end and trained and not example["truncated"] and ids[trained[-1]] not in end:
            known = " or ".join(repr(processor.decode([i])) for i in sorted(end))
            return (
                f"the last trained token is {processor.decode([ids[trained[-1]]])!r}, not {known}: the model would not"
                " learn to stop"
            )
        return None

    def preview(self, example: Mapping[str, Any], processor: Any) -> str:
        """The text as the model sees it; what is trained stands between guillemets."""
        parts: list[str] = []
        inside, start = False, 0
        flags = [label != IGNORE for label in example["labels"]]
        for i in range(len(flags) + 1):
            if i == len(flags) or flags[i] != inside:
                text = processor.decode(example["input_ids"][start:i])
                parts.append(f"«{text}»" if inside else text)
                inside, start = not inside, i
        return "".join(parts)


def _from_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The summed cross-entropy from logits, which are computed only at positions where a row trains."""
    from torch.nn.functional import cross_entropy

    targets = batch["labels"][:, 1:]
    kept = (targets != IGNORE).any(0).nonzero().squeeze(-1)
    output = model(
        **packed.model_inputs(batch),
        logits_to_keep=kept,  # the output layer is the largest matmul of a small model: skip prompts and padding
        use_cache=False,
    )
    targets = targets[:, kept]
    trained = targets != IGNORE
    return cross_entropy(output.logits[trained].float(), targets[trained], reduction="sum")


def _continuation(prompt: list[int], tokens: list[int], processor: Any) -> str:
    """The text of `tokens` behind a prompt. Alone, many tokenizers write a first one without its blank."""
    before = processor.decode(prompt, skip_special_tokens=True)
    whole = processor.decode([*prompt, *tokens], skip_special_tokens=True)
    if not whole.startswith(before):  # the prompt ends within a character
        return str(processor.decode(tokens, skip_special_tokens=True))
    return str(whole[len(before) :])


def counted(ids: list[int], labels: list[int], truncated: bool) -> dict[str, Any]:
    """An encoded row with the counts that the core adds up. The first token is never predicted, so never counted."""
    labels = [IGNORE, *labels[1:]]
    trained = sum(label != IGNORE for label in labels)
    return {
        "input_ids": ids,
        "labels": labels,
        "length": len(ids),
        "trained": trained,
        "weight": trained,
        "truncated": truncated,
    }
