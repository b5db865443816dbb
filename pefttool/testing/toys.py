"""Two tasks as small as tasks can be, for checking adapters: rows are token ids, no plugin is needed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttool.api.task import Task
from pefttool.api.values import Loaded, Loss, Row, Setting

if TYPE_CHECKING:
    from torch import Tensor, nn

IGNORE = -100


def toy_rows(kind: str, count: int = 16) -> list[Row]:
    """Rows of odd lengths: the class is the parity of the first token; a decoder learns to count upwards."""
    draws = random.Random(5)
    rows = []
    for i in range(count):
        first = 10 + draws.randrange(40)
        length = 3 + i % 7
        ids = (
            [first + j for j in range(length)]
            if kind == "decoder"
            else [draws.randrange(10, 60) for _ in range(length)]
        )
        rows.append(Row({"ids": ids, "label": ids[0] % 2}, "toy", i + 1))
    return rows


class Toy(Task):
    """What both toys share: padding on the right with id 0."""

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        return None

    def check_row(self, values: Mapping[str, Any], options: Any) -> str | None:
        return None

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting) -> dict[str, Tensor]:
        import torch

        width = max(e["length"] for e in examples)

        def padded(key: str, value: int) -> Tensor:
            return torch.tensor([[*e[key], *([value] * (width - e["length"]))] for e in examples])

        batch = {"input_ids": padded("ids", 0), "attention_mask": padded("mask", 0)}
        batch["labels"] = padded("targets", IGNORE) if self.generative else torch.tensor([e["label"] for e in examples])
        return batch

    def predict(self, model: nn.Module, rows: Sequence[Row], processor: Any, setting: Setting) -> list[dict[str, Any]]:
        raise NotImplementedError


class ToyClassification(Toy):
    """Is the first token odd? A new head of two classes on the encoder."""

    name = "toy-classification"
    peft_task_type = "SEQ_CLS"

    def load(self, source: Any, setting: Setting) -> Loaded:
        from transformers import AutoModelForSequenceClassification

        return Loaded(source.model(AutoModelForSequenceClassification, num_labels=2), None)

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        return ("classifier",)

    def split(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        return model.get_submodule("bert"), model.get_submodule("classifier")

    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        ids = row.values["ids"]
        counts = {"weight": 1, "length": len(ids), "trained": 1, "truncated": False}
        return {"ids": ids, "mask": [1] * len(ids), "label": row.values["label"], **counts}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        from torch.nn.functional import cross_entropy

        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        labels = batch["labels"]
        return Loss(cross_entropy(logits, labels, reduction="sum"), labels.new_tensor(len(labels)), logits.detach())


class ToyCounting(Toy):
    """The next token is the last one plus one; rows have different numbers of trained tokens."""

    name = "toy-counting"
    peft_task_type = "CAUSAL_LM"
    generative = True
    packs = True
    allows_added_positions = True

    def load(self, source: Any, setting: Setting) -> Loaded:
        from transformers import AutoModelForCausalLM

        return Loaded(source.model(AutoModelForCausalLM), None)

    def split(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        return model.get_submodule("model"), model.get_submodule("lm_head")

    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        ids = row.values["ids"]
        counts = {"weight": len(ids) - 1, "length": len(ids), "trained": len(ids) - 1, "truncated": False}
        return {"ids": ids, "mask": [1] * len(ids), "targets": [IGNORE, *ids[1:]], **counts}

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting) -> dict[str, Any]:
        """Padded as any toy is, or one row behind another: `[1, T]`, with the rows' lengths."""
        import torch

        if not setting.packing:
            return super().collate(examples, processor, setting)
        return {
            "input_ids": torch.tensor([[i for e in examples for i in e["ids"]]]),
            "position_ids": torch.tensor([[i for e in examples for i in range(e["length"])]]),
            "labels": torch.tensor([[i for e in examples for i in e["targets"]]]),
            "segments": tuple(e["length"] for e in examples),
        }

    def check_packing(
        self, model: nn.Module, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting
    ) -> str | None:
        from pefttool.nn.attention import install

        return install(model)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        from torch.nn.functional import cross_entropy

        inputs: dict[str, Any] = {name: batch[name] for name in batch if name != "labels"}
        if setting.packing:
            from pefttool.nn.attention import packed_mask

            inputs["attention_mask"] = packed_mask(batch["input_ids"].device)
        targets = batch["labels"][:, 1:]
        kept = (targets != IGNORE).any(0).nonzero().squeeze(-1)  # as tasks do that spare the output layer work
        logits = model(**inputs, use_cache=False, logits_to_keep=kept).logits.float()
        targets = targets[:, kept]
        trained = targets != IGNORE
        total = cross_entropy(logits[trained], targets[trained], reduction="sum")
        return Loss(total, trained.sum(), logits[trained].detach())


TOYS: Mapping[str, Task] = {"encoder": ToyClassification(), "decoder": ToyCounting()}
