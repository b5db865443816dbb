"""image-classification: one picture, one of several classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttool import DataError, Facts, Loaded, Loss, Options, Problem, Row, Setting, Task
from pefttool.toolkit import class_names
from pefttool.toolkit.columns import describe, find_column, missing_column
from pefttool_vision import pictures
from pefttool_vision.augmentation import Augmentation, augment
from pefttool_vision.columns import IMAGE_COLUMNS, check_image_column, locate, names_pictures
from pefttool_vision.processing import Pictures, call

if TYPE_CHECKING:
    from torch import Tensor, nn

LABEL_COLUMNS = ("label", "labels", "class", "category")


class ImageClassificationOptions(Options):
    image_column: str | None = Field(
        None, description=f"column with the picture's path; default: the first of {', '.join(IMAGE_COLUMNS)}"
    )
    label_column: str | None = Field(
        None, description=f"column with the class; default: the first of {', '.join(LABEL_COLUMNS)}"
    )
    size: int | None = Field(
        None,
        ge=16,
        description="pixels of both sides of what the model sees: the shorter side is scaled to it, the middle is"
        " taken; default: the model's own image processor. Smaller is faster",
    )
    augment: tuple[Augmentation, ...] = Field(
        (),
        description="changes to the pictures in training, drawn anew for every epoch: `flip` (mirrored), `crop` (at"
        " least 85 % of both sides)",
    )
    top_k: int = Field(5, ge=1, description="how many classes a prediction lists, most probable first")


class ImageClassification(Task):
    """One picture, one of several classes."""

    name = "image-classification"
    Options = ImageClassificationOptions
    primary = ("accuracy", "max")
    repeatable = True
    truncates = False
    example: ClassVar[Mapping[str, Any]] = {
        "model": "example:dinov2-small",
        "data": {"train": "example:fashion-mnist"},
        "task": {"size": 70},
    }

    def defaults(self) -> Mapping[str, Any]:
        return {"batch_size": 16, "epochs": 3}

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        image, label = (find_column(columns, None, usual) for usual in (IMAGE_COLUMNS, LABEL_COLUMNS))
        if not names_pictures(image, sample) or label is None:
            return None
        if not all(isinstance(v.get(label), str | int | bool) for v in sample):
            return None
        return f"columns {image!r} (picture) and {label!r} (class)"

    def recognise_model(self, config: Any) -> str | None:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

        if config.model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
            return f"{config.model_type} encodes pictures"
        return None

    def varies(self, options: ImageClassificationOptions) -> bool:
        return bool(options.augment)

    def check_row(self, values: Mapping[str, Any], options: ImageClassificationOptions) -> str | None:
        complaint = check_image_column(values, options.image_column)
        if complaint is not None:
            return complaint
        label = find_column(values, options.label_column, LABEL_COLUMNS)
        if label is None:
            return missing_column(values, options.label_column, LABEL_COLUMNS, "label_column")
        if not isinstance(values[label], str | int | bool) or values[label] == "":
            return f"column {label!r}: found {describe(values[label])}, expected a class name or number"
        return self._check_file(values, options)

    def check_input(self, values: Mapping[str, Any], options: ImageClassificationOptions) -> str | None:
        return check_image_column(values, options.image_column) or self._check_file(values, options)

    def _check_file(self, values: Mapping[str, Any], options: ImageClassificationOptions) -> str | None:
        complaint = pictures.complaint(self._image(values, options))
        column = find_column(values, options.image_column, IMAGE_COLUMNS)
        return None if complaint is None else f"column {column!r}: {complaint}"

    def reads(self, values: Mapping[str, Any], options: ImageClassificationOptions) -> Iterable[str]:
        label = find_column(values, options.label_column, LABEL_COLUMNS)
        return [name for name in (find_column(values, options.image_column, IMAGE_COLUMNS), label) if name is not None]

    def key(self, values: Mapping[str, Any], options: ImageClassificationOptions) -> str:
        return pictures.content_key(self._image(values, options))

    def locate(self, row: Row, options: ImageClassificationOptions) -> Row:
        return locate(row, options.image_column)

    def files(self, values: Mapping[str, Any], options: ImageClassificationOptions) -> tuple[str, ...]:
        return (self._image(values, options),)

    def stratum(self, values: Mapping[str, Any], options: ImageClassificationOptions) -> str | None:
        return self._label(values, options)

    def labels(self, rows: Sequence[Row], options: ImageClassificationOptions) -> tuple[str, ...]:
        labels = {self._label(row.values, options) for row in rows}
        if len(labels) < 2:
            raise DataError(
                f"image-classification: the training rows have {len(labels)} class ({', '.join(sorted(labels))}),"
                " expected at least 2: put the pictures of each class into a folder of its own"
            )
        return class_names.in_order(labels)

    def _image(self, values: Mapping[str, Any], options: ImageClassificationOptions) -> str:
        return str(values[find_column(values, options.image_column, IMAGE_COLUMNS) or "image"])

    def _label(self, values: Mapping[str, Any], options: ImageClassificationOptions) -> str:
        return str(values[find_column(values, options.label_column, LABEL_COLUMNS) or "label"])

    def check(self, options: ImageClassificationOptions, facts: Facts) -> list[Problem]:
        return pictures.missing_packages(self.name, "PIL")

    def load(self, source: Any, setting: Setting) -> Loaded:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        names = {i: label for i, label in enumerate(setting.labels or ("0", "1"))}
        described = {"num_labels": len(names), "id2label": names, "label2id": {v: k for k, v in names.items()}}
        model = source.model(AutoModelForImageClassification, **described)
        expose_features(model, self.head_modules(model))
        size = setting.options.size
        processor = source.processor(AutoImageProcessor)
        return Loaded(model, Pictures(processor, source.config, (size, size) if size else None, "crop"))

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        backbone = getattr(model, "base_model_prefix", "")
        return tuple(n for n, m in model.named_children() if n != backbone and any(True for _ in m.parameters()))

    def split(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        backbone = model.get_submodule(str(getattr(model, "base_model_prefix", "")))
        return backbone, model.get_submodule(self.head_modules(model)[-1])

    def encode(self, row: Row, processor: Pictures, setting: Setting) -> dict[str, Any]:
        encoded = self._encode_image(row, processor, setting)
        encoded["label"] = class_names.number(self._label(row.values, setting.options), setting.labels, row)
        return encoded

    def _encode_image(self, row: Row, processor: Pictures, setting: Setting) -> dict[str, Any]:
        image = self._image(row.values, setting.options)
        return {"image": image, "length": processor.positions, "weight": 1, "trained": 1, "truncated": False}

    def filler(self, length: int, setting: Setting) -> dict[str, Any]:
        return {"image": None, "length": length, "weight": 1, "trained": 1, "truncated": False, "label": 0}

    def collate(
        self, examples: Sequence[Mapping[str, Any]], processor: Pictures, setting: Setting
    ) -> dict[str, Tensor]:
        import torch

        if examples[0]["image"] is None:
            batch = {"pixel_values": processor.blank(len(examples))}
        else:
            batch = {"pixel_values": processor.pixels([self._open(e["image"], setting) for e in examples])}
        if "label" in examples[0]:
            batch["labels"] = torch.tensor([e["label"] for e in examples])
        return batch

    @staticmethod
    def _open(path: str, setting: Setting) -> Any:
        picture = pictures.open_rgb(path)
        if setting.epoch is None or not setting.options.augment:
            return picture
        return augment(picture, setting.options.augment, setting.seed, setting.epoch, path)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        from torch.nn.functional import cross_entropy

        labels = batch["labels"]
        logits = call(model, batch["pixel_values"]).logits.float()
        return Loss(cross_entropy(logits, labels, reduction="sum"), labels.new_tensor(len(labels)), logits.detach())

    def decode(self, outputs: Tensor, setting: Setting) -> list[dict[str, Any]]:
        best = outputs.float().softmax(-1).topk(min(setting.options.top_k, len(setting.labels)))
        found = []
        for scores, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            names = [setting.labels[index] for index in indices]
            found.append({"label": names[0], "score": scores[0], "scores": dict(zip(names, scores, strict=True))})
        return found

    def predict(
        self, model: nn.Module, rows: Sequence[Row], processor: Pictures, setting: Setting
    ) -> list[dict[str, Any]]:
        device = next(model.parameters()).device
        rows = [self.locate(row, setting.options) for row in rows]
        batch = self.collate([self._encode_image(r, processor, setting) for r in rows], processor, setting)
        return self.decode(call(model, batch["pixel_values"].to(device)).logits, setting)

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

        truth = [self._label(row.values, setting.options) for row in rows]
        given = [p["label"] for p in predictions]
        found = {
            "accuracy": float(accuracy_score(truth, given)),
            "f1_macro": float(f1_score(truth, given, average="macro", zero_division=0.0)),
            "loss": loss,
        }
        if len(setting.labels) == 2 and len(set(truth)) == 2:
            # `scores` may name the best class only (top_k=1); the other one has the rest.
            second = setting.labels[1]
            scores = [p["score"] if p["label"] == second else 1 - p["score"] for p in predictions]
            found["auroc"] = float(roc_auc_score([label == second for label in truth], scores))
        return found

    def preview(self, example: Mapping[str, Any], processor: Pictures) -> str:
        return f"{example['image']} ({processor.height} x {processor.width} pixels) -> class {example['label']}"


def expose_features(model: nn.Module, heads: Sequence[str]) -> None:
    """Let what the new output layer sees pass through a module of its own, without changing any parameter's name.

    transformers pools between two modules (DINOv2: the class token beside the mean of the patches). While the backbone
    is frozen, what a module gives can be kept from one epoch to the next, and this is the smallest thing to keep.
    """
    from torch import nn

    from pefttool_vision.heads import SeenLinear

    for name in heads:
        layer = model.get_submodule(name)
        if type(layer) is nn.Linear:
            model.set_submodule(name, SeenLinear(layer))
