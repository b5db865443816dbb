"""Every mode with transparency, beside colour * alpha + white * (1 - alpha)."""

import numpy as np
from case_bench import Bench
from PIL import Image


def check(bench: Bench) -> None:
    from pefttool_vision.pictures import open_rgb

    draws = np.random.default_rng(0)
    rgba = draws.integers(0, 256, (16, 16, 4), dtype=np.uint8)
    rgba[:4, :, 3], rgba[4:8, :, 3] = 255, 0
    path = bench.folder / "a.png"
    Image.fromarray(rgba).save(path)
    _compare(open_rgb(str(path)), rgba[..., :3], rgba[..., 3:])

    grey = rgba[..., [0, 3]]
    Image.fromarray(grey, "LA").save(path)
    _compare(open_rgb(str(path)), np.repeat(grey[..., :1], 3, axis=-1), grey[..., 1:])

    picture = Image.fromarray(rgba[..., 0], "L")
    picture.save(path, transparency=int(rgba[0, 0, 0]))
    shown = np.where(rgba[..., :1] == rgba[0, 0, 0], 0, 255)
    _compare(open_rgb(str(path)), np.repeat(rgba[..., :1], 3, axis=-1), shown)

    palette = Image.fromarray(rgba[..., :3]).quantize(8)
    colours = np.asarray(palette.getpalette()[:24]).reshape(-1, 3)
    for name in ("a.png", "a.gif"):
        palette.save(bench.folder / name, transparency=3)
        places = np.asarray(palette)
        found = open_rgb(str(bench.folder / name))
        _compare(found, colours[places], np.where(places == 3, 0, 255)[..., None])


def _compare(found: Image.Image, colour: np.ndarray, alpha: np.ndarray) -> None:
    part = alpha.astype(float) / 255
    right = colour * part + 255 * (1 - part)
    made = np.asarray(found).astype(float)
    assert np.abs(made - right).max() <= 1
    opaque = np.broadcast_to(alpha == 255, right.shape)
    assert np.array_equal(made[opaque], right[opaque]) and opaque.any()
