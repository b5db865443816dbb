"""Bases whose folders hold quantised weights: whose they are, or why they cannot be trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pefttool.api.errors import ModelError, Refused, UsageError
from pefttool.api.quantizer import Quantizer
from pefttool.config.validation import validate
from pefttool.files.model_folder import CONFIG, tensor_names
from pefttool.models.quantization import Quantization

#: Where config.json says how weights are stored; the second is compressed-tensors' older one.
KEYS = ("quantization_config", "compression_config")
#: What transformers can read back into 16 bits, and how.
READ_BACK = {"mxfp4": "Mxfp4Config(dequantize=True)", "fp8": "FineGrainedFP8Config(dequantize=True)"}


def read(folder: Path) -> Mapping[str, Any] | None:
    """How the weights of this folder are quantised, as its config.json says; None where they are not.

    Raises ModelError for a config.json that cannot be read.
    """
    try:
        document = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model {folder}: {CONFIG} cannot be read ({error}): get it again") from error
    found = next((document[key] for key in KEYS if document.get(key)), None)
    return found if isinstance(found, Mapping) else None


def quantization(
    folder: Path, label: str, asked: Quantization | None, quantizers: Iterable[Quantizer]
) -> Quantization | None:
    """How the run's linear weights are stored: as was `asked` for, or as the folder holds them already.

    No weight is read. Raises UsageError or Refused where the two contradict each other, and ModelError for a folder
    that is stored in a way that no quantizer here reads. `label` is how messages name the model.
    """
    stored = read(folder)
    if stored is None:
        return asked
    names = {name for path in folder.glob("*.safetensors") for name in tensor_names(path, label)}
    found = next((q for known in quantizers if (q := known.of_stored(stored, names)) is not None), None)
    if found is None:
        raise ModelError(_unknown(label, stored, [known.name for known in quantizers]))
    if asked is None:
        return Quantization.default(found)
    if asked.name != found.name:
        raise UsageError(
            f"quantize: {asked.name!r} is not how {label} is stored, which is {found.name!r} already: drop --quantize,"
            " or give the 16-bit model that it was made from"
        )
    return _as_asked(found, asked, label)


def _as_asked(found: Quantizer, asked: Quantization, label: str) -> Quantization:
    """The folder's quantizer with the options that the user set. Raises Refused for what the folder holds otherwise."""
    complaints: list[str] = []
    options = validate(found.Options, asked.options.model_dump(exclude_unset=True), "quantize.", complaints)
    if options is None:
        way_out = f"{label} is stored so already: drop it, or give the 16-bit model that it was made from"
        raise Refused([f"{complaint}: {way_out}" for complaint in complaints])
    return Quantization(found, options)


def _unknown(label: str, stored: Mapping[str, Any], names: list[str]) -> str:
    method = str(stored.get("quant_method") or "an unnamed method")
    able = ", ".join(names) or "none"
    instead = "give the 16-bit model that it was made from, with --quantize nf4 if memory is short"
    if method in READ_BACK:
        instead += (
            f", or a copy of it that transformers has read back: from_pretrained(...,"
            f" quantization_config={READ_BACK[method]}) and save_pretrained"
        )
    return (
        f"model {label}: its weights are stored by {method!r} (quantization_config in its {CONFIG}), and adapters are"
        f" trained on plain ones or on those of a quantizer that is here ({able}): {instead}"
    )
