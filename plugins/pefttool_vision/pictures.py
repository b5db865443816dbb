"""Picture files: opened as RGB, and checked without keeping what was decoded."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool import DataError, Problem

if TYPE_CHECKING:
    from types import ModuleType

    from PIL.Image import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
#: 8 bits a channel. What is deeper has no range that everybody agrees on.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa")
INSTALL = 'pip install "pefttool[vision]"'


def missing_packages(task: str, *modules: str) -> list[Problem]:
    """A Problem where a package that the task needs is not installed."""
    gone = [module for module in modules if find_spec(module) is None]
    names = {"PIL": "pillow"}
    return [
        Problem("task.name", f"{task!r} needs the package {names.get(module, module)}: {INSTALL}") for module in gone
    ]


def _pil() -> ModuleType:
    """The module PIL.Image. Raises DataError, with the command that installs it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"pictures are read by the package pillow, which is not installed: {INSTALL}") from error
    return Image


def open_rgb(path: str, upright: bool = True) -> Image:
    """The picture, decoded, in RGB; turned `upright` if its camera was not. Raises DataError with the path."""
    image = _pil()
    from PIL import ImageOps

    try:
        with image.open(path) as picture:
            if upright:
                picture = ImageOps.exif_transpose(picture)
            if "transparency" in picture.info and picture.mode in ("P", "L", "RGB"):
                picture = picture.convert("RGBA")
            converted: Image = picture.convert("RGB")
            return converted
    except Exception as error:  # PIL raises many kinds for a damaged file
        raise DataError(f"{path} cannot be read as a picture: {_reason(error)}") from error


def size(path: str) -> tuple[int, int]:
    """(width, height) in pixels as stored, from the file's first bytes. Raises DataError with the path."""
    image = _pil()
    try:
        with image.open(path) as picture:
            width, height = picture.size
            return width, height
    except Exception as error:
        raise DataError(f"{path} cannot be read as a picture: {_reason(error)}") from error


def complaint(path: str) -> str | None:
    """Why this file is no complete picture ("found ..., expected ..."), or None. A file is looked at once."""
    try:
        state = os.stat(path)
    except OSError as error:
        return f"found no picture at {path} ({error.strerror})"
    if not Path(path).is_file():
        return f"found {path}, expected a picture, and that is no file"
    return _complaint(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1 << 20)
def _complaint(path: str, size: int, modified: int) -> str | None:
    image = _pil()
    if size == 0:
        return f"found {path}, expected a picture, and it is empty"
    try:
        with image.open(path) as picture:
            if picture.mode not in MODES:
                return f"found {path} of mode {picture.mode}, expected 8 bits a channel: convert it"
            picture.draft("L", (64, 64))  # a JPEG is decoded at an eighth of its size: enough to see that it is whole
            picture.load()
    except Exception as error:
        return f"found {path}, expected a picture ({_reason(error)})"
    return None


def content_key(path: str) -> str:
    """The same for the same bytes, under whatever name."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return path


def _reason(error: Exception) -> str:
    text: Any = getattr(error, "strerror", None) or error
    return " ".join(str(text).split())[:150] or type(error).__name__
