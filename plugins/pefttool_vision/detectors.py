"""transformers' own detectors (YOLOS, DETR and its kin): the loss of each picture by itself, and what they found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

#: These take the outputs of the last layer alone, and so a picture's loss can be had from a batch's outputs.
PLAIN_LOSSES = ("yolos", "detr")


def is_detector(config: Any) -> bool:
    """Whether this config is of a model that has been made to detect objects, heads and all."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

    return config.model_type in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES


def losses(model: nn.Module, pixel_values: Tensor, boxes: Tensor, classes: Tensor) -> tuple[Tensor, Any]:
    """(each picture's own loss `[B]`, the outputs). The models' losses are means over the boxes of a whole batch, which
    would make a picture count less beside a crowded one; so each is asked for alone.

    `boxes` are unit boxes `[B, G, 4]`, `classes` `[B, G]`, -1 where there is none.
    """
    import torch

    labels = []
    for own, named in zip(boxes, classes, strict=True):
        real = named >= 0
        labels.append({"class_labels": named[real], "boxes": own[real]})
    plain = base_of(model)
    if _simulated(pixel_values, model):
        outputs = model(pixel_values=pixel_values)
        return outputs.logits.float().sum((1, 2)) + outputs.pred_boxes.float().sum((1, 2)), outputs
    if plain.config.model_type in PLAIN_LOSSES and not plain.config.auxiliary_loss:
        outputs = model(pixel_values=pixel_values)
        logits, found = outputs.logits.float(), outputs.pred_boxes.float()
        each = [
            plain.loss_function(logits[i : i + 1], [label], logits.device, found[i : i + 1], plain.config)[0]
            for i, label in enumerate(labels)
        ]
        return torch.stack(each), outputs
    alone = [model(pixel_values=pixel_values[i : i + 1], labels=[label]) for i, label in enumerate(labels)]
    outputs = type(alone[0])(
        logits=torch.cat([o.logits for o in alone]), pred_boxes=torch.cat([o.pred_boxes for o in alone])
    )
    return torch.stack([o.loss for o in alone]), outputs


def _simulated(pixel_values: Tensor, model: nn.Module) -> bool:
    """Whether there are shapes only: without numbers no boxes can be matched, and any sum of the outputs will do."""
    from torch._subclasses.fake_tensor import FakeTensor

    return any(isinstance(tensor, FakeTensor) for tensor in (pixel_values, next(model.parameters())))


def base_of(model: nn.Module) -> Any:
    """The transformers model inside whatever an adapter has put around it."""
    from transformers import PreTrainedModel

    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def scores_of(logits: Tensor, classes: int) -> Tensor:
    """`[B, Q, classes]` from 0 to 1. Some models have one more class, for nothing; the others say of each yes or no."""
    if logits.shape[-1] == classes + 1:
        return logits.float().softmax(-1)[..., :-1]
    return logits.float().sigmoid()
