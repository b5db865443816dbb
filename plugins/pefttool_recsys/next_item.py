"""next-item: a user's items in order, the items that come next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttool import Arranged, Caution, DataError, Facts, Loaded, Loss, Options, Problem, Row, Setting, Task
from pefttool.toolkit.columns import describe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttool_recsys.item_model import Catalogue, Recommended

#: Positions with this target do not count in the loss.
IGNORE = -100
#: From this share of items on that the model does not know, it is said.
STRANGE = 0.1
#: What rows of a log have besides: whose items they are, and what ordered and chose them.
OF_LOGS = ("user", "timestamps", "ratings")
#: What metrics look at: the first ten.
JUDGED = 10


class NextItemOptions(Options):
    items_column: str = Field("items", description="column with a user's items, oldest first")
    next_column: str = Field(
        "next", description="column with the item that came next: where there is one, it alone is learnt, or judged"
    )
    top_k: int = Field(JUDGED, ge=JUDGED, description="items that a prediction has")
    train_items: bool = Field(
        True,
        description="train the vectors of the items that the model knows, too: with LoRA, most of what there is to"
        " train, and most of what is gained; false: only new items' vectors and biases",
    )
    exclude_seen: bool = Field(True, description="never recommend what the user has had already")


class NextItem(Task):
    """What a user may take next, of all items: HR@10 and NDCG@10 are ranked over the whole catalogue, no sample."""

    name = "next-item"
    Options = NextItemOptions
    primary = ("ndcg@10", "max")
    repeatable = True
    example: ClassVar[Mapping[str, Any]] = {
        "model": "example:recommender-tiny",
        "data": {"train": "example:movielens-100k"},
    }

    def defaults(self) -> Mapping[str, Any]:
        return {"batch_size": 16, "epochs": 10, "sequence_length": 200}

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        if "items" not in columns or not sample or not all(_are_items(v.get("items")) for v in sample):
            return None
        return "column 'items' (a user's items)"

    def recognise_model(self, config: Any) -> str | None:
        return "its vocabulary is items" if getattr(config, "vocabulary", None) == "items" else None

    def check_row(self, values: Mapping[str, Any], options: NextItemOptions) -> str | None:
        following = values.get(options.next_column)
        if following is not None and not _is_item(following):
            return f"column {options.next_column!r}: found {describe(following)}, expected an item (text or a number)"
        return self.check_input(values, options)

    def check_input(self, values: Mapping[str, Any], options: NextItemOptions) -> str | None:
        name = options.items_column
        if name not in values:
            found = ", ".join(map(repr, values)) or "none"
            return (
                f"found columns {found}, expected {name!r} (name yours with -o task.items_column=COLUMN; a log with one"
                " interaction a line is read with -o data.format=interactions)"
            )
        if not _are_items(values[name]):
            return f"column {name!r}: found {describe(values[name])}, expected a list of items (text or numbers)"
        return None

    def reads(self, values: Mapping[str, Any], options: NextItemOptions) -> Iterable[str]:
        return (options.items_column, options.next_column, *OF_LOGS)

    def key(self, values: Mapping[str, Any], options: NextItemOptions) -> str:
        return repr((list(map(str, values[options.items_column])), values.get(options.next_column)))

    def arrange(
        self, train: Sequence[Row], held_out: Sequence[Row] | None, fraction: float, options: NextItemOptions
    ) -> Arranged | None:
        """Leave last out: where nobody set rows apart, every user's last item is judged by, those before it trained on.

        Held-out rows without the column `next` are judged by their last item, too.
        """
        if held_out is not None:
            return Arranged(tuple(train), tuple(last for row in held_out if (last := _last_apart(row, options))))
        if any(row.values.get(options.next_column) is not None for row in train):
            return None
        both = [(row, _last_apart(row, options)) for row in train]
        items, following = options.items_column, options.next_column
        before = (
            row if last is None else Row({n: v for n, v in last.values.items() if n != following}, row.file, row.line)
            for row, last in both
        )
        notice = f"leave last out: the last of the {items} of each user is held out, those before it are trained on"
        return Arranged(tuple(before), tuple(last for _, last in both if last is not None), (notice,))

    def fit(self, rows: Sequence[Row], options: NextItemOptions) -> Mapping[str, Any]:
        """The items of the training rows; what the model's own vocabulary lacks of them becomes new items."""
        items = {str(item) for row in rows for item in row.values[options.items_column]}
        items |= {
            str(row.values[options.next_column]) for row in rows if row.values.get(options.next_column) is not None
        }
        return {"items": sorted(items, key=lambda item: (len(item), item))}

    def check(self, options: NextItemOptions, facts: Facts) -> list[Problem]:
        if facts.quantizer is not None and not facts.linear_modules:
            return [Problem("quantize", f"{facts.architecture} has no linear layers; drop it")]
        return []

    def load(self, source: Any, setting: Setting) -> Loaded:
        from transformers import AutoModel, AutoTokenizer

        from pefttool_recsys.item_model import Catalogue, ItemModel

        catalogue = Catalogue.of(source.config, source.processor(AutoTokenizer), setting.fitted.get("items", ()))
        return Loaded(ItemModel(source.model(AutoModel), catalogue, setting.options.train_items), catalogue)

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        return ("head",)

    def unused(self, model: Any) -> tuple[str, ...]:
        """The embeddings of the model's own items, where none of them is among these."""
        from pefttool.toolkit.model_parts import names_of

        return () if len(model.known) else names_of(model, model.backbone.get_input_embeddings())

    def encode(self, row: Row, processor: Catalogue, setting: Setting) -> dict[str, Any]:
        given = [processor.index(item) for item in row.values[setting.options.items_column]]
        following = row.values.get(setting.options.next_column)
        if following is None:  # every item but the first is to be learnt
            targets = [*given[1:], IGNORE]
        else:
            targets = [*[IGNORE] * (len(given) - 1), processor.index(following)]
        return {**self._encoded(given, targets, setting), "known": len(processor.known)}

    @staticmethod
    def _encoded(items: Sequence[int], targets: Sequence[int], setting: Setting) -> dict[str, Any]:
        most = setting.sequence_length
        kept, learnt = list(items[-most:]), list(targets[-most:])
        weight = sum(target != IGNORE for target in learnt)
        return {
            "items": kept,
            "targets": learnt,
            "seen": sorted(set(items)),
            "length": len(kept),
            "weight": weight,
            "trained": weight,
            "truncated": len(items) > most,
        }

    def filler(self, length: int, setting: Setting) -> dict[str, Any]:
        return self._encoded([1] * length, [1] * length, setting)

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting) -> dict[str, Tensor]:
        import torch

        def padded(name: str, value: int) -> Tensor:
            width = max(1, *(len(e[name]) for e in examples))
            return torch.tensor([[*e[name], *([value] * (width - len(e[name])))] for e in examples])

        lengths = torch.tensor([len(e["items"]) for e in examples])
        items = padded("items", 0)
        mask = (torch.arange(items.shape[1]) < lengths[:, None]).long()
        return {
            "items": items,
            "attention_mask": mask,
            "targets": padded("targets", IGNORE),
            "seen": padded("seen", 0),
            "last": lengths - 1,
        }

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        from torch.nn.functional import cross_entropy

        found = model(items=batch["items"], attention_mask=batch["attention_mask"])
        counts = batch["targets"] != IGNORE
        # The catalogue is what it is multiplied by: only for positions that are learnt.
        losses = cross_entropy(found.scores(found.hidden[counts]), batch["targets"][counts], reduction="sum")
        outputs = None if model.training else self._ranked(found, batch, setting)
        return Loss(losses, counts.sum(), outputs)

    @staticmethod
    def _ranked(found: Recommended, batch: Mapping[str, Tensor], setting: Setting) -> tuple[Any, ...]:
        """(names, scores) of the best items after each row's last: scores are probabilities among what is ranked."""
        import torch

        users = torch.arange(len(batch["items"]), device=batch["items"].device)
        scores = found.scores(found.hidden[users, batch["last"]])
        if setting.options.exclude_seen:
            scores = scores.scatter(1, batch["seen"], -math.inf)
        scores[:, 0] = -math.inf
        best = scores.softmax(-1).topk(min(setting.options.top_k, scores.shape[1] - 1))
        return found.names, best.indices, best.values

    def decode(self, outputs: tuple[Any, ...], setting: Setting) -> list[dict[str, Any]]:
        names, indices, scores = outputs
        predictions = []
        for row, given in zip(indices.tolist(), scores.tolist(), strict=True):
            ranked = [(names[i - 1], score) for i, score in zip(row, given, strict=True) if i and score > 0]
            predictions.append({"items": [name for name, _ in ranked], "scores": [score for _, score in ranked]})
        return predictions

    def predict(
        self, model: nn.Module, rows: Sequence[Row], processor: Catalogue, setting: Setting
    ) -> list[dict[str, Any]]:
        from pefttool.nn import embedding_offload

        examples = []
        for row in rows:
            items = [processor.index(item) for item in row.values[setting.options.items_column]]
            examples.append(self._encoded(items, [IGNORE] * len(items), setting))
        device = embedding_offload.device_of(model)
        batch = {name: t.to(device) for name, t in self.collate(examples, processor, setting).items()}
        found = model(items=batch["items"], attention_mask=batch["attention_mask"])
        return self.decode(self._ranked(found, batch, setting), setting)

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        """HR@10 and NDCG@10; an item that is in no catalogue, or was seen before, is missed."""
        from pefttool_recsys.ranking import hit_rate, ndcg, ranks

        name = setting.options.next_column
        judged = [
            (p["items"], r.values[name])
            for p, r in zip(predictions, rows, strict=True)
            if r.values.get(name) is not None
        ]
        if not judged:
            raise DataError(
                f"next-item: no held-out row has the column {name!r} to be judged by, nor two items: give longer rows"
            )
        found = ranks([items for items, _ in judged], [str(item) for _, item in judged])
        return {f"ndcg@{JUDGED}": ndcg(found, JUDGED), f"hr@{JUDGED}": hit_rate(found, JUDGED), "loss": loss}

    def noted(
        self, train: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]], setting: Setting
    ) -> Sequence[str]:
        """What a model that knows items knows of these rows' items, where it is not nearly all."""
        items = {item for example in held_out for item in example["seen"]}
        known = int(held_out[0].get("known", 0)) if held_out else 0
        new = sum(not 0 < item <= known for item in items)
        if not known or new < STRANGE * len(items):
            return ()
        return (
            Caution(
                f"{new} of the {len(items)} items of held-out rows are not among the {known} that the model knows:"
                " what follows them is learnt from the training rows alone; see that items are called as the model"
                " calls them"
            ),
        )

    def preview(self, example: Mapping[str, Any], processor: Catalogue) -> str:
        names = [processor.names[i - 1] if i else "?" for i in example["items"][-10:]]
        target = example["targets"][-1]
        return f"{' '.join(names)} -> {processor.names[target - 1] if target > 0 else '?'}"


def _last_apart(row: Row, options: NextItemOptions) -> Row | None:
    """The row with its last item in the column `next`, if it has none there; None for a row of one item."""
    items = row.values[options.items_column]
    if row.values.get(options.next_column) is not None:
        return row
    if len(items) < 2:
        return None
    return Row({**row.values, options.items_column: items[:-1], options.next_column: items[-1]}, row.file, row.line)


def _is_item(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _are_items(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_item, value))
