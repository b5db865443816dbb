"""From pictures to pixel values, through the model's own image processor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pefttool import ModelError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

Fit = Literal["crop", "stretch"]
#: What a config without an image size is planned with.
USUAL_SIZE = 224


class Pictures:
    """A model's image processor with the size that the run wants, and what a picture of this size is to the model.

    `crop`: as the processor does it (the shorter side to a size, the middle of it), with `size` a square of so many
    pixels. `stretch`: to exactly `size` (height, width), so that relative boxes stay what they are.
    height, width   of the pixel values, in pixels
    grid            (rows, columns) of patches; (0, 0) for a model without a grid of its own
    positions       how many the model sees: patches and one more
    """

    def __init__(self, processor: Any, config: Any, size: tuple[int, int] | None, fit: Fit) -> None:
        self.processor, self.fit = processor, fit
        self.arguments: dict[str, Any] = {}
        patch = _patch_size(config)
        if fit == "stretch":
            self.height, self.width = size or _own_size(processor, config, patch)
            off = ("do_resize", "do_center_crop", "do_pad")
            self.arguments = {name: False for name in off if getattr(processor, name, None) is not None}
        else:
            if size is not None:
                self.arguments = _resized(processor, *size)
            self.height, self.width = size or _cropped_size(processor, config)
        rows, columns = (self.height // patch, self.width // patch) if patch else (0, 0)
        self.grid = (rows, columns)
        self.positions = rows * columns + 1

    def pixels(self, pictures: Sequence[Image]) -> Tensor:
        """`[B, 3, height, width]` float32."""
        import torch

        if self.processor is None:
            raise ModelError("the model's folder has no preprocessor_config.json: add it, with the mean and the size")
        ready = [self._stretched(picture) if self.fit == "stretch" else picture for picture in pictures]
        made: Tensor = self.processor(images=ready, return_tensors="pt", **self.arguments)["pixel_values"]
        if tuple(made.shape[1:]) != (3, self.height, self.width):
            raise ModelError(
                f"{type(self.processor).__name__} made pixel values of shape {tuple(made.shape[1:])}, expected"
                f" {(3, self.height, self.width)}: give pictures of one shape, or task.size"
            )
        return made.to(torch.float32)

    def blank(self, count: int) -> Tensor:
        """Pixel values of pictures that are not there: `[count, 3, height, width]`."""
        import torch

        return torch.zeros(count, 3, self.height, self.width)

    def _stretched(self, picture: Image) -> Image:
        from PIL import Image

        resample = getattr(self.processor, "resample", None)
        return picture.resize((self.width, self.height), Image.Resampling.BILINEAR if resample is None else resample)

    def save_pretrained(self, folder: Path) -> None:
        if self.processor is not None:
            self.processor.save_pretrained(folder)


def _patch_size(config: Any) -> int:
    patch: Any = getattr(config, "patch_size", None)
    if isinstance(patch, Sequence):
        patch = patch[0]
    return int(patch) if patch else 0


def _sides(size: Any) -> tuple[int, int] | None:
    """(height, width) of a processor's `size` where it says both."""
    if isinstance(size, Mapping) or hasattr(size, "get"):
        height, width = size.get("height"), size.get("width")
        return (int(height), int(width)) if height and width else None
    return None


def _own_size(processor: Any, config: Any, patch: int) -> tuple[int, int]:
    """What to stretch pictures to: the processor's size, or otherwise the model's, in whole patches."""
    size: Any = getattr(processor, "size", None)
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    shorter = size.get("shortest_edge") if hasattr(size, "get") else None
    found = _sides(crop) or _sides(size) or ((int(shorter), int(shorter)) if shorter else _config_size(config))
    return tuple(side // patch * patch if patch else side for side in found)  # type: ignore[return-value]


def _config_size(config: Any) -> tuple[int, int]:
    size: Any = getattr(config, "image_size", None) or USUAL_SIZE
    return (int(size[0]), int(size[1])) if isinstance(size, Sequence) else (int(size), int(size))


def _cropped_size(processor: Any, config: Any) -> tuple[int, int]:
    """(height, width) of what the processor makes of any picture: asked of it, since each has its own rules."""
    if processor is None:
        return _config_size(config)
    from PIL import Image

    made = processor(images=[Image.new("RGB", (40, 30))], return_tensors="pt")["pixel_values"]
    return int(made.shape[-2]), int(made.shape[-1])


def _resized(processor: Any, height: int, width: int) -> dict[str, Any]:
    """Arguments that make the processor's pixel values `height` x `width`."""
    size: Any = getattr(processor, "size", None)
    exact = {"height": height, "width": width}
    if getattr(processor, "do_center_crop", False):
        shorter = hasattr(size, "get") and size.get("shortest_edge") and height == width
        return {"size": {"shortest_edge": height} if shorter else exact, "crop_size": exact}
    if hasattr(size, "get") and size.get("shortest_edge"):
        return {"size": {"shortest_edge": height}, "do_center_crop": True, "crop_size": exact}
    return {"size": exact}


def call(model: nn.Module, pixel_values: Tensor, **more: Any) -> Any:
    """The model's outputs; position embeddings are interpolated where the pictures are not of the pretrained size."""
    from transformers import PreTrainedModel

    plain: Any = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), model)
    can = "interpolate_pos_encoding" in inspect.signature(plain.forward).parameters
    if can and tuple(pixel_values.shape[-2:]) != _config_size(plain.config):
        more["interpolate_pos_encoding"] = True
    return model(pixel_values=pixel_values, **more)
