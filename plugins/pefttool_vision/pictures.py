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
#: Modes in which a pixel may be transparent. What shows through is white, as on most pages that such pictures are for.
SEE_THROUGH = ("LA", "La", "PA", "RGBA", "RGBa")
BACKGROUND = "white"
#: EXIF's tag that says how a camera was held; 1 is upright.
ORIENTATION = 0x0112
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
    """The picture, decoded, in RGB; turned `upright` if its camera was not; white where it is transparent.

    Raises DataError with the path, also for more than 8 bits a channel in a mode that would be clipped.
    """
    image = _pil()
    from PIL import ImageOps

    try:
        with image.open(path) as picture:
            too_deep = _too_deep(path, picture.mode)
            if too_deep is None:
                if upright:
                    picture = ImageOps.exif_transpose(picture)
                return _opaque(picture).convert("RGB")
    except Exception as error:  # PIL raises many kinds for a damaged file
        raise DataError(f"{path} cannot be read as a picture: {_reason(error)}") from error
    raise DataError(too_deep)


def _opaque(picture: Image) -> Image:
    """The picture on the background: what colour a fully transparent pixel has is chance, and nobody sees it."""
    if picture.mode not in SEE_THROUGH and "transparency" not in picture.info:
        return picture
    below = _pil().new("RGBA", picture.size, BACKGROUND)
    below.alpha_composite(picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA"))
    found: Image = below
    return found


def orientation(path: str) -> int:
    """How the stored picture has to be turned, as EXIF numbers it: 1 is not at all, and so is what cannot be read."""
    image = _pil()
    try:
        with image.open(path) as picture:
            found = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # whoever opens the picture says what is wrong with it
        return 1
    return found if found in range(2, 9) else 1


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
            too_deep = _too_deep(path, picture.mode)
            if too_deep is not None:
                return too_deep
            picture.draft("L", (64, 64))  # a JPEG is decoded at an eighth of its size: enough to see that it is whole
            picture.load()
    except Exception as error:
        return f"found {path}, expected a picture ({_reason(error)})"
    return None


def _too_deep(path: str, mode: str) -> str | None:
    if mode in MODES:
        return None
    way_out = "convert it to an 8-bit PNG, with one range of values for all pictures"
    return f"found {path} of mode {mode}, expected 8 bits a channel: {way_out}"


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
