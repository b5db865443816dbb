"""object-detection: one picture, any number of boxes, each of one of several classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pefttool import DataError, Facts, Loaded, Loss, ModelError, Options, Problem, Row, Setting, Task
from pefttool.toolkit import class_names
from pefttool.toolkit.columns import find_column, missing_column
from pefttool_vision import objects, pictures
from pefttool_vision.columns import IMAGE_COLUMNS, check_image_column, locate, names_pictures
from pefttool_vision.objects import OBJECT_COLUMNS, Thing
from pefttool_vision.processing import Pictures

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Candidates of a picture before suppression.
CANDIDATES = 300


class DetectionOptions(Options):
    image_column: str | None = Field(
        None, description=f"column with the picture's path; default: the first of {', '.join(IMAGE_COLUMNS)}"
    )
    objects_column: str | None = Field(
        None, description=f"column with boxes and categories; default: the first of {', '.join(OBJECT_COLUMNS)}"
    )
    head: Literal["auto", "model", "dense"] = Field(
        "auto",
        description="`model`: the model's own detection head and loss (YOLOS, DETR); `dense`: a new head on the patch"
        " features of a plain vision transformer (ViT, DINOv2); `auto`: `model` if it has one",
    )
    size: int | tuple[int, int] | None = Field(
        None,
        description="pixels that pictures are resized to: of both sides, or [height, width]; default: the model's own"
        " image processor's. Boxes are always in pixels of the picture as it is on disk",
    )
    score_threshold: float = Field(0.05, ge=0, lt=1, description="boxes with a lower score are left out")
    max_detections: int = Field(100, ge=1, description="the best boxes of a picture that are kept")
    nms_iou: float = Field(
        0.6, gt=0, le=1, description="boxes of one class that overlap by more than this are one (`dense` only)"
    )


class ObjectDetection(Task):
    """One picture, any number of boxes, each of one of several classes."""

    name = "object-detection"
    Options = DetectionOptions
    primary = ("map", "max")
    repeatable = True
    truncates = False
    example: ClassVar[Mapping[str, Any]] = {
        "model": "example:dinov2-small",
        "data": {"train": "example:tree-crowns"},
        "task": {"size": 140},
    }

    def defaults(self) -> Mapping[str, Any]:
        return {"batch_size": 8, "epochs": 12}

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        image, boxes = (find_column(columns, None, usual) for usual in (IMAGE_COLUMNS, OBJECT_COLUMNS))
        if boxes is None or not names_pictures(image, sample):
            return None
        values = [v.get(boxes) for v in sample]
        if not any(map(objects.looks_like_objects, values)):
            return None
        if not all(value == [] or objects.looks_like_objects(value) for value in values):
            return None
        return f"columns {image!r} (picture) and {boxes!r} (boxes)"

    def recognise_model(self, config: Any) -> str | None:
        from pefttool_vision.detectors import is_detector

        return f"{config.model_type} detects objects" if is_detector(config) else None

    def check_row(self, values: Mapping[str, Any], options: DetectionOptions) -> str | None:
        complaint = check_image_column(values, options.image_column)
        if complaint is not None:
            return complaint
        column = find_column(values, options.objects_column, OBJECT_COLUMNS)
        if column is None:
            return missing_column(values, options.objects_column, OBJECT_COLUMNS, "objects_column")
        complaint = objects.complaint(column, values[column]) or self._check_file(values, options)
        if complaint is not None:
            return complaint
        image = self._image(values, options)
        if objects.things(values[column]):
            said = [values.get(side) for side in ("width", "height")]
            complaint = objects.turned(image, said)
        return complaint or objects.outside(column, values[column], *pictures.size(image))

    def check_input(self, values: Mapping[str, Any], options: DetectionOptions) -> str | None:
        return check_image_column(values, options.image_column) or self._check_file(values, options)

    def _check_file(self, values: Mapping[str, Any], options: DetectionOptions) -> str | None:
        complaint = pictures.complaint(self._image(values, options))
        column = find_column(values, options.image_column, IMAGE_COLUMNS)
        return None if complaint is None else f"column {column!r}: {complaint}"

    def reads(self, values: Mapping[str, Any], options: DetectionOptions) -> Iterable[str]:
        boxes = find_column(values, options.objects_column, OBJECT_COLUMNS)
        inside = [] if boxes is None else objects.reads(boxes, values[boxes])
        return [find_column(values, options.image_column, IMAGE_COLUMNS) or "image", *inside]

    def key(self, values: Mapping[str, Any], options: DetectionOptions) -> str:
        return pictures.content_key(self._image(values, options))

    def locate(self, row: Row, options: DetectionOptions) -> Row:
        return locate(row, options.image_column)

    def files(self, values: Mapping[str, Any], options: DetectionOptions) -> tuple[str, ...]:
        return (self._image(values, options),)

    def labels(self, rows: Sequence[Row], options: DetectionOptions) -> tuple[str, ...]:
        names = {thing.category for row in rows for thing in self._things(row.values, options)}
        if not names:
            raise DataError("object-detection: the training rows have no box at all, expected at least 1: add some")
        return class_names.in_order(names)

    def _image(self, values: Mapping[str, Any], options: DetectionOptions) -> str:
        return str(values[find_column(values, options.image_column, IMAGE_COLUMNS) or "image"])

    def _things(self, values: Mapping[str, Any], options: DetectionOptions) -> list[Thing]:
        return objects.things(values[find_column(values, options.objects_column, OBJECT_COLUMNS) or "objects"])

    def check(self, options: DetectionOptions, facts: Facts) -> list[Problem]:
        return pictures.missing_packages(self.name, "PIL", "pycocotools")

    def load(self, source: Any, setting: Setting) -> Loaded:
        from transformers import AutoImageProcessor, AutoModel, AutoModelForObjectDetection

        from pefttool_vision.detectors import is_detector

        options = setting.options
        size = (options.size, options.size) if isinstance(options.size, int) else options.size
        processor = Pictures(source.processor(AutoImageProcessor), source.config, size, "stretch")
        names = {i: label for i, label in enumerate(setting.labels or ("0",))}
        if options.head == "model" or (options.head == "auto" and is_detector(source.config)):
            described = {"num_labels": len(names), "id2label": names, "label2id": {v: k for k, v in names.items()}}
            return Loaded(source.model(AutoModelForObjectDetection, **described), processor)
        from pefttool_vision.dense import DenseDetector

        if not all(processor.grid) or hasattr(source.config, "depths"):
            raise ModelError(
                f"task.head: 'dense' needs a backbone with one grid of patches (ViT, DINOv2), and"
                f" {source.config.model_type} has none of {processor.height} x {processor.width} pixels"
            )
        return Loaded(DenseDetector(source.model(AutoModel), len(names), processor.grid), processor)

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        """The dense head, or of a detector the layers that name classes and place boxes."""
        backbone = getattr(model, "base_model_prefix", "backbone")
        return tuple(n for n, m in model.named_children() if n != backbone and any(True for _ in m.parameters()))

    def split(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        backbone = model.get_submodule(str(getattr(model, "base_model_prefix", "backbone")))
        return backbone, model.get_submodule(self.head_modules(model)[0])

    def encode(self, row: Row, processor: Pictures, setting: Setting) -> dict[str, Any]:
        from pefttool_vision.boxes import unit_from_xywh

        encoded = self._encode_image(row, processor, setting)
        width, height = encoded["size"]
        things = self._things(row.values, setting.options)
        numbers = class_names.numbers([thing.category for thing in things], setting.labels, row)
        real = [(thing, number) for thing, number in zip(things, numbers, strict=True) if not thing.crowd]
        encoded["boxes"] = [list(unit_from_xywh(thing.bbox, width, height)) for thing, _ in real]
        encoded["classes"] = [number for _, number in real]
        return encoded

    def _encode_image(self, row: Row, processor: Pictures, setting: Setting) -> dict[str, Any]:
        image = self._image(row.values, setting.options)
        counts = {"length": processor.positions, "weight": 1, "trained": 1, "truncated": False}
        return {"image": image, "size": list(pictures.size(image)), **counts}

    def filler(self, length: int, setting: Setting) -> dict[str, Any]:
        counts = {"length": length, "weight": 1, "trained": 1, "truncated": False}
        return {"image": None, "size": [1, 1], "boxes": [[0.5, 0.5, 0.5, 0.5]], "classes": [0], **counts}

    def collate(
        self, examples: Sequence[Mapping[str, Any]], processor: Pictures, setting: Setting
    ) -> dict[str, Tensor]:
        """`boxes` `[B, G, 4]` are unit boxes, `classes` `[B, G]` are -1 where there is none; `size` is in pixels."""
        import torch

        if examples[0]["image"] is None:
            pixels = processor.blank(len(examples))
        else:
            pixels = processor.pixels([pictures.open_rgb(e["image"], upright=False) for e in examples])
        batch = {"pixel_values": pixels, "size": torch.tensor([e["size"] for e in examples])}
        if "boxes" in examples[0]:
            most = max(1, *(len(e["classes"]) for e in examples))
            batch["boxes"], batch["classes"] = (
                torch.zeros(len(examples), most, 4),
                torch.full((len(examples), most), -1),
            )
            for i, example in enumerate(examples):
                if example["classes"]:
                    batch["boxes"][i, : len(example["classes"])] = torch.tensor(example["boxes"])
                    batch["classes"][i, : len(example["classes"])] = torch.tensor(example["classes"])
        return batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        boxes, classes = batch["boxes"], batch["classes"]
        if self._is_dense(model):
            from pefttool_vision.dense import dense_loss

            found = model(batch["pixel_values"])
            grid = self._grid(model)
            losses = dense_loss(found, grid, boxes, classes)
            outputs = (found.logits.detach().sigmoid(), found.boxes.detach(), batch["size"], True)
        else:
            from pefttool_vision import detectors

            losses, given = detectors.losses(model, batch["pixel_values"], boxes, classes)
            outputs = self._of_detector(given, batch["size"], setting)
        return Loss(losses.sum(), classes.new_tensor(len(losses)), outputs)

    @staticmethod
    def _is_dense(model: nn.Module) -> bool:
        from pefttool_vision.dense import DenseDetector

        return any(isinstance(module, DenseDetector) for module in model.modules())

    @staticmethod
    def _grid(model: nn.Module) -> tuple[int, int]:
        from pefttool_vision.dense import DenseDetector

        rows, columns = next(m.grid for m in model.modules() if isinstance(m, DenseDetector))
        return 2 * rows, 2 * columns

    @staticmethod
    def _of_detector(given: Any, size: Tensor, setting: Setting) -> tuple[Tensor, Tensor, Tensor, bool]:
        from pefttool_vision.boxes import xyxy_from_unit
        from pefttool_vision.detectors import scores_of

        scores = scores_of(given.logits.detach(), len(setting.labels or ("0",)))
        return scores, xyxy_from_unit(given.pred_boxes.detach().float()), size, False

    def decode(self, outputs: tuple[Tensor, Tensor, Tensor, bool], setting: Setting) -> list[dict[str, Any]]:
        """`outputs`: scores `[B, N, C]`, xyxy boxes as parts of the picture `[B, N, 4]`, (width, height) `[B, 2]`, and
        whether boxes that say the same of one thing have yet to be told apart."""
        scores, boxes, sizes, repeats = outputs
        return [
            {"objects": self._objects(s, b.clamp(0, 1), size.tolist(), repeats, setting)}
            for s, b, size in zip(scores, boxes, sizes, strict=True)
        ]

    def _objects(
        self, scores: Tensor, boxes: Tensor, size: list[int], repeats: bool, setting: Setting
    ) -> list[dict[str, Any]]:
        from pefttool_vision.boxes import suppress

        options = setting.options
        flat = scores.flatten()
        best = flat.topk(min(CANDIDATES if repeats else options.max_detections, len(flat)))
        chosen = best.indices[best.values >= options.score_threshold]
        cells, classes = chosen // scores.shape[1], chosen % scores.shape[1]
        if repeats and len(chosen):
            kept = suppress(boxes[cells], flat[chosen], classes, options.nms_iou)[: options.max_detections]
            chosen, cells, classes = chosen[kept], cells[kept], classes[kept]
        width, height = size
        found = []
        for score, c, (x0, y0, x1, y1) in zip(
            flat[chosen].tolist(), classes.tolist(), boxes[cells].tolist(), strict=True
        ):
            box = [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height]
            found.append({"label": setting.labels[c], "score": score, "bbox": box})
        return found

    def predict(
        self, model: nn.Module, rows: Sequence[Row], processor: Pictures, setting: Setting
    ) -> list[dict[str, Any]]:
        device = next(model.parameters()).device
        rows = [self.locate(row, setting.options) for row in rows]
        batch = self.collate([self._encode_image(r, processor, setting) for r in rows], processor, setting)
        pixels, size = batch["pixel_values"].to(device), batch["size"].to(device)
        if self._is_dense(model):
            found = model(pixels)
            return self.decode((found.logits.sigmoid(), found.boxes, size, True), setting)
        return self.decode(self._of_detector(model(pixel_values=pixels), size, setting), setting)

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        from pefttool_vision.coco_metrics import average_precision

        truth = [self._things(row.values, setting.options) for row in rows]
        found = [prediction["objects"] for prediction in predictions]
        precision = average_precision(truth, found, setting.labels, setting.options.max_detections)
        return {**precision, "loss": loss}

    def preview(self, example: Mapping[str, Any], processor: Pictures) -> str:
        count = len(example["classes"])
        return f"{example['image']} ({processor.height} x {processor.width} pixels) -> {count} boxes"
