"""Boxes: pixels of a picture to parts of it and back, overlap, and non-maximum suppression.

xywh    COCO's: left, top, width, height in pixels of the picture as it is on disk
unit    centre x, centre y, width, height as parts of the picture (DETR's): they stay the same when it is resized
xyxy    left, top, right, bottom, in either
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Box = tuple[float, float, float, float]


def unit_from_xywh(box: Sequence[float], width: float, height: float) -> Box:
    """The part of a `width` x `height` picture that the box is, cut off where it leaves the picture."""
    left, right = (min(max(x, 0.0), width) / width for x in (box[0], box[0] + box[2]))
    top, bottom = (min(max(y, 0.0), height) / height for y in (box[1], box[1] + box[3]))
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def xywh_from_unit(box: Sequence[float], width: float, height: float) -> Box:
    x, y, w, h = box
    return (x - w / 2) * width, (y - h / 2) * height, w * width, h * height


def xyxy_from_unit(boxes: Tensor) -> Tensor:
    """`[..., 4]` centre x, centre y, width, height to left, top, right, bottom."""
    import torch

    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of xyxy boxes `[N, 4]` and `[M, 4]`: `[N, M]`."""
    common = _area(_common(a[:, None], b[None]))
    return common / (_area(a)[:, None] + _area(b)[None] - common).clamp(min=1e-12)


def paired_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of pairs of xyxy boxes `[..., 4]`: `[...]`."""
    common = _area(_common(a, b))
    return common / (_area(a) + _area(b) - common).clamp(min=1e-12)


def generalized_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (arXiv:1902.09630) of pairs of xyxy boxes `[..., 4]`: `[...]`, from -1 to 1."""
    import torch

    common = _area(_common(a, b))
    union = (_area(a) + _area(b) - common).clamp(min=1e-12)
    corners = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    whole = _area(torch.cat(corners, dim=-1)).clamp(min=1e-12)
    return common / union - (whole - union) / whole


def _common(a: Tensor, b: Tensor) -> Tensor:
    import torch

    return torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], dim=-1)


def _area(boxes: Tensor) -> Tensor:
    sides: Tensor = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def suppress(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Indices `[K]` of xyxy boxes `[N, 4]` to keep, best score first: of those of one class that overlap by more than
    `threshold`, the best. Plain torch: torchvision, which has the usual `nms`, is not needed for anything else here.
    """
    import torch

    order = scores.argsort(descending=True, stable=True)
    boxes, classes = boxes[order], classes[order]
    rivals = (overlap(boxes, boxes) > threshold) & (classes[:, None] == classes[None])
    rivals = rivals.triu(diagonal=1).cpu()  # row i is better than column j
    kept = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if kept[i]:
            kept &= ~rivals[i]
    found: Tensor = order[kept.to(order.device)]
    return found
