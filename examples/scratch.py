"""The same model without what it was pretrained on: its config and processor, its weights drawn from a seed."""

from __future__ import annotations

import shutil
from pathlib import Path


def make(model: Path, folder: Path, seed: int) -> Path:
    """A copy of the model folder with random weights (transformers' own initialisation, float32); returns `folder`."""
    import torch
    import transformers

    from pefttool.toolkit.quiet import quiet_loading

    folder.mkdir(parents=True)
    for path in model.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    config = transformers.AutoConfig.from_pretrained(model)
    kind = getattr(transformers, (config.architectures or ["AutoModel"])[0])
    torch.manual_seed(seed)
    built = (
        kind._from_config(config, dtype=torch.float32) if hasattr(kind, "_from_config") else kind.from_config(config)
    )
    with quiet_loading():
        built.save_pretrained(folder)
    generation = model / "generation_config.json"
    if generation.is_file():  # which tokens to suppress, and which is the first, is no weight
        shutil.copyfile(generation, folder / generation.name)
    return folder
