"""A detector on the patch features of a plain vision transformer (ViT, DINOv2), which has none of its own.

Every cell of a grid says which classes have a box there, and how far the sides of the box are from it (FCOS,
arXiv:1904.01355). The cells are half as wide as the patches. A cell answers for a box if it lies near the box's centre;
its score learns how well its box fits (quality focal loss, arXiv:2006.04388), so that good boxes survive suppression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pefttool_vision.boxes import generalized_overlap, paired_overlap, xyxy_from_unit
from pefttool_vision.processing import call

WIDTH = 96
#: Cells are asked for a box within this many cells of its centre.
RADIUS = 1.5
#: What every class is thought to be before training: few cells hold anything.
PRIOR = 0.01
BOX_WEIGHT = 2.0


@dataclass
class Found:
    """For every cell: class logits `[B, N, C]`, and its box in xyxy as parts of the picture `[B, N, 4]`."""

    logits: Tensor
    boxes: Tensor


class DenseDetector(nn.Module):
    """Pixel values `[B, 3, H, W]` to `Found`, on a backbone whose last hidden states end with a grid of patches."""

    base_model_prefix = "backbone"

    def __init__(self, backbone: Any, classes: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = backbone.config
        self.grid = grid
        self.head = DenseHead(self.config.hidden_size, classes, device=next(backbone.parameters()).device)

    def forward(self, pixel_values: Tensor) -> Found:
        rows, columns = self.grid
        hidden = call(self.backbone, pixel_values).last_hidden_state
        patches = hidden[:, -rows * columns :].float().transpose(1, 2).unflatten(2, self.grid)
        found: Found = self.head(patches)
        return found


class DenseHead(nn.Module):
    """Patch features `[B, D, h, w]` to `Found` over N = 2h * 2w cells."""

    def __init__(self, hidden: int, classes: int, device: Any = None) -> None:
        super().__init__()
        self.enter = nn.Conv2d(hidden, WIDTH, 1, device=device)
        self.finer = nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2, device=device)
        self.tower = nn.Sequential(
            nn.GroupNorm(16, WIDTH, device=device),
            nn.GELU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, device=device),
            nn.GroupNorm(16, WIDTH, device=device),
            nn.GELU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, device=device),
            nn.GroupNorm(16, WIDTH, device=device),
            nn.GELU(),
        )
        self.classes = nn.Conv2d(WIDTH, classes, 3, padding=1, device=device)
        self.sides = nn.Conv2d(WIDTH, 4, 3, padding=1, device=device)
        nn.init.normal_(self.classes.weight, std=0.01)
        assert self.classes.bias is not None and self.sides.bias is not None
        nn.init.constant_(self.classes.bias, -math.log((1 - PRIOR) / PRIOR))
        nn.init.normal_(self.sides.weight, std=0.01)
        nn.init.constant_(self.sides.bias, 1.0)

    def forward(self, patches: Tensor) -> Found:
        features = self.tower(self.finer(self.enter(patches)))
        rows, columns = features.shape[-2:]
        centres, cell = cells(rows, columns, features.device)
        # Distances to left, top, right and bottom, in cells, never negative.
        sides = self.sides(features).float().clamp(max=6).exp().flatten(2).transpose(1, 2) * cell.repeat(2)
        boxes = torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], dim=-1)
        return Found(self.classes(features).float().flatten(2).transpose(1, 2), boxes)


def cells(rows: int, columns: int, device: Any) -> tuple[Tensor, Tensor]:
    """(centres `[rows * columns, 2]` as x and y, width and height of a cell `[2]`), as parts of the picture."""
    y, x = torch.meshgrid(
        (torch.arange(rows, device=device) + 0.5) / rows,
        (torch.arange(columns, device=device) + 0.5) / columns,
        indexing="ij",
    )
    return torch.stack([x, y], dim=-1).flatten(0, 1), torch.tensor([1 / columns, 1 / rows], device=device)


def assign(centres: Tensor, cell: Tensor, boxes: Tensor, real: Tensor) -> Tensor:
    """Which of its picture's unit boxes `[B, G, 4]` each cell answers for: `[B, N]`, -1 for none.

    Cells whose centre is in a box, near its centre, take it; where there are several, the smallest. A box that has no
    cell's centre in it, or has lost all to smaller ones, takes the cell nearest to its centre. Only `real` boxes
    `[B, G]` count. No shape depends on numbers, so that a step can be simulated without any.
    """
    away = (centres[:, None] - boxes[:, None, :, :2]).abs()  # [B, N, G, 2]
    near = ((away <= boxes[:, None, :, 2:] / 2) & (away <= RADIUS * cell)).all(-1) & real[:, None]
    area = boxes[..., 2:].prod(-1)[:, None].expand(near.shape)
    size, chosen = torch.where(near, area, torch.inf).min(2)
    chosen = torch.where(size.isinf(), -1, chosen)
    number = torch.arange(boxes.shape[1], device=boxes.device)
    nearest = (away / cell).square().sum(-1).argmin(1)  # [B, G]
    left_out, held = torch.zeros_like(real), chosen
    for _ in range(boxes.shape[1]):  # a box that takes its nearest cell may take another's only one, which then follows
        left_out = left_out | (real & (held[:, None] != number[:, None]).all(2))
        forced = torch.full_like(chosen, -1).scatter_reduce(1, nearest, torch.where(left_out, number, -1), "amax")
        held = torch.where(forced >= 0, forced, chosen)
    return held


def dense_loss(found: Found, grid: tuple[int, int], boxes: Tensor, classes: Tensor) -> Tensor:
    """Each picture's loss `[B]`, which does not depend on the others.

    `boxes` are unit boxes `[B, G, 4]`, `classes` `[B, G]`, -1 where there is none (padding).
    """
    chosen = assign(*cells(*grid, found.logits.device), boxes, classes >= 0)
    positive, chosen = (chosen >= 0).float(), chosen.clamp(min=0)
    count = positive.sum(1).clamp(min=1)
    own = xyxy_from_unit(boxes.gather(1, chosen[..., None].expand(-1, -1, 4)))
    fit = paired_overlap(found.boxes.detach(), own) * positive
    named = classes.gather(1, chosen).clamp(min=0)
    quality = torch.zeros_like(found.logits).scatter(2, named[..., None], fit[..., None])
    surprise = functional.binary_cross_entropy_with_logits(found.logits, quality, reduction="none")
    focal = ((found.logits.sigmoid() - quality).square() * surprise).sum((1, 2))
    box_loss = ((1 - generalized_overlap(found.boxes, own)) * positive).sum(1)
    return (focal + BOX_WEIGHT * box_loss) / count
