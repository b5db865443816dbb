"""What the model is given in a run, beside what PIL and NumPy make of each file by hand."""

from pathlib import Path
from typing import Any

import numpy as np
from case_bench import Bench
from PIL import Image

#: EXIF orientations of these pictures, as a rotation by so many quarters against the clock.
QUARTERS = {1: 0, 3: 2, 6: -1, 8: 1}


def check(bench: Bench) -> None:
    from transformers import AutoImageProcessor

    from pefttool_vision import classification

    files = sorted(path for path in bench.input().rglob("*") if path.is_file())
    assert len(files) == 14
    given: list[Any] = []
    call = classification.call

    def listening(model: Any, pixel_values: Any, **more: Any) -> Any:
        given.extend(pixel_values.float().cpu().numpy())
        return call(model, pixel_values, **more)

    bench.monkeypatch.setattr(classification, "call", listening)
    model = bench.model("vit")
    bench.run("--adapter", "lora", "--model", model, "--data", bench.input(), "--task", "image-classification", "-o",
              "dtype=float32")  # fmt: skip
    plain = AutoImageProcessor.from_pretrained(model)
    right = {path: plain(images=[by_hand(path)], return_tensors="np")["pixel_values"][0] for path in files}
    for path, values in right.items():
        assert any(np.array_equal(values, one) for one in given), f"{path} never reached the model as it is"
    for one in given:
        assert any(np.array_equal(values, one) for values in right.values()), "a picture that is none of these"
    hidden = [right[path] for path in files if path.name == "hidden.png"]
    assert np.array_equal(*hidden) and (hidden[0] == 1).all()  # white, whatever colour is hidden


def by_hand(path: Path) -> Image.Image:
    """RGB of a file, from its stored channels."""
    stored = Image.open(path)
    channels = np.asarray(stored).astype(int)
    if stored.mode == "RGBA":
        alpha = channels[..., 3:]
        rgb = np.where(alpha == 0, 255, channels[..., :3])
        assert set(np.unique(alpha)) <= {0, 255}
    elif stored.mode == "CMYK":  # PIL has inverted Adobe's inks
        rgb = (255 - channels[..., :3]) * (255 - channels[..., 3:]) // 255
    elif stored.mode == "P":
        rgb = np.asarray(stored.getpalette()).reshape(-1, 3)[channels]
    elif stored.mode == "L":
        rgb = np.repeat(channels[..., None], 3, axis=-1)
    else:
        rgb = channels
    quarters = QUARTERS[stored.getexif().get(0x0112, 1)]
    return Image.fromarray(np.rot90(rgb, quarters).astype("uint8"))
