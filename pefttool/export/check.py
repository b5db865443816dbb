"""`pefttool check`: a saved adapter is whole, changes its base's answers, and answers alike without pefttool."""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pefttool.api.errors import ModelError, PefttoolError, RunError, UsageError
from pefttool.api.events import Notice
from pefttool.api.values import Row
from pefttool.config import sizes
from pefttool.config.emitter import Emitter
from pefttool.config.recipe import Recipe
from pefttool.config.registry import Registry
from pefttool.export import clean_process, held_out, peft_versions
from pefttool.export.answers import Judge
from pefttool.export.reload import DEFAULT, Opened, Opening, Reloaded
from pefttool.files.safetensors_file import Reader
from pefttool.inference import agreement, recorded_calls, witness_file
from pefttool.inference.agreement import TOLERANCE, Agreement
from pefttool.inference.out_of_memory import out_of_memory
from pefttool.inference.witness import Witness
from pefttool.runs import run_folder
from pefttool.runs.artefacts import write_json
from pefttool.runs.run_folder import CHECK, EVENTS
from pefttool.setup.device_memory import free as free_memory
from pefttool.setup.precision import torch_dtype
from pefttool.toolkit import peft_folder

#: As much as two ways to compute the same may differ: below it the adapter has changed nothing.
NOTHING = 1e-6
#: Rows that are asked after a run.
AFTER_RUN = 4
#: Bytes of a process that has imported torch, transformers and peft.
LIBRARIES = 1 << 30


@dataclass(frozen=True)
class Checked:
    """What was found of an adapter that passed.

    effect      the adapter's answers and those of its base
    clean       pefttool's answers and those of a process without it, or why there is none
    versions    of the libraries in that process
    since       the first peft that takes the folder's format; None for a folder that is not in peft's layout
    as_trained  the answers of the trained model and of the adapter that was loaded again; None once the run is over
    """

    folder: Path
    adapter: str
    tensors: int
    heads: tuple[str, ...]
    effect: Agreement
    clean: Agreement | str
    versions: dict[str, str]
    since: str | None
    as_trained: Agreement | None = None

    def line(self) -> str:
        """All of it in one line, for the end of a run."""
        changes = f"it changes the base's outputs by up to {self.effect.largest:.2g}"
        whole = "is whole" if self.as_trained is None else "is whole, and answers as the trained model did"
        if isinstance(self.clean, str):
            return f"the saved adapter {whole}; {changes}; {self.clean}"
        return f"the saved adapter {whole}; it answers alike without pefttool ({self.clean}); {changes}"

    def as_json(self) -> dict[str, Any]:
        alike = isinstance(self.clean, Agreement)
        return {
            "folder": str(self.folder),
            "adapter": self.adapter,
            "tensors": self.tensors,
            "heads": list(self.heads),
            "effect": self.effect.largest,
            "relative_effect": self.effect.relative,
            "clean_process": self.clean.as_json() if isinstance(self.clean, Agreement) else None,
            "no_clean_process_because": None if alike else self.clean,
            "as_trained": None if self.as_trained is None else self.as_trained.as_json(),
            "versions": self.versions,
            "peft_since": self.since,
            "peft_tested": peft_versions.tested(),
        }


def check(
    run: Path,
    registry: Registry,
    opening: Opening = DEFAULT,
    rows: int = 16,
    trained: Witness | None = None,
) -> Checked:
    """Reload the adapter of a run or adapter folder, here and in a process without pefttool, and compare.

    `trained` is what the model that was saved answered; by default what waits in the run's folder, if anything does,
    unless the `opening` asks for other answers. Raises ModelError with what is wrong: a damaged file, a missing
    or strange key, a missing head, another base, fields that peft does not know, an adapter that changes nothing,
    answers that differ.
    """
    opened = opening.open(run, registry)
    if opened.adapter is None:
        raise UsageError(f"{run} is merged, and holds no adapter: check the run that it was made from")
    if trained is None and opening.data is None and opening.dtype is None:
        trained = witness_file.kept(run_folder.witness(run), opened.choice.device)
    since = _format(opened) if (opened.folder / peft_folder.CONFIG).is_file() else None

    def chosen(loaded: Reloaded) -> Sequence[Row]:
        return held_out.of(run, registry, loaded, opening.data, opening.data_format)

    with tempfile.TemporaryDirectory(prefix="pefttool-check-") as name:
        folder = Path(name)
        judge = Judge(folder, chosen, rows, () if trained is None else trained.calls)
        sources: list[str | None] = []

        def look(loaded: Reloaded) -> None:
            if trained is not None:
                trained.require_values(loaded.model, opened.folder)
            sources.append(clean_process.script(opened, loaded.model, folder))

        answers, base = judge.ask("adapter", opened, look=look)
        if base is None:
            base = judge.ask_base("base", opened)
        as_trained = None if trained is None else trained.agrees(answers, base, opened.folder)
        effect = agreement.compare(base, answers, None, judge.classes)
        if effect.relative <= NOTHING:
            raise ModelError(
                f"{opened.folder} changes nothing: on {effect.rows} rows the outputs are the base's; train again (with"
                " a higher train.learning_rate or for more steps), or restore the folder"
            )
        clean: Agreement | str = clean_process.why_none(opened)
        versions: dict[str, str] = {}
        if sources[0] is not None:
            recorded_calls.write(folder, judge.calls)
            found = clean_process.run(sources[0], folder)
            if found.warnings:
                raise ModelError(f"{opened.folder}: plain peft warns: {' '.join(found.warnings[0].split())[:300]}")
            clean, versions = agreement.compare(answers, found.answers, None, judge.classes), found.versions
            apart = opened.quantization is not None and opened.quantization.quantizer.rounds_more_elsewhere
            allowed = TOLERANCE["bfloat16" if apart else opened.choice.dtype]
            if not clean.within(allowed):
                raise ModelError(
                    f"{opened.folder} answers otherwise without pefttool: {clean}, where {allowed:g} is allowed;"
                    " please report this"
                )
    count = sum(len(Reader(path).shapes) for path in opened.folder.glob("*.safetensors"))
    heads = tuple(opened.stored["head_modules"])
    return Checked(opened.folder, opened.adapter.name, count, heads, effect, clean, versions, since, as_trained)


def after_run(run: Path, registry: Registry, recipe: Recipe, trained: Witness | None = None) -> Checked | str:
    """`check` on a few rows, once nothing of the run is in memory any more; or why it is left to the user.

    `trained` is what the model answered before it was saved; with the recipe's `check: files` that is all that the
    loaded adapter is compared with. What was found stays in the run folder: in check.json, and in one line of its
    events. Raises as `check` does.
    """
    emit = Emitter(registry.plugins)
    emit.open(run / EVENTS)
    try:
        found = _after_run(run, registry, recipe, trained)
        emit(Notice(text=found if isinstance(found, str) else found.line()))
    except PefttoolError as error:
        emit(Notice(text=str(error), level="error"))
        raise
    except (OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RunError(
            f"{run} is finished, but its adapter could not be loaded again ({reason}): make room, then"
            f" `pefttool check {run}`"
        ) from error
    finally:
        emit.close()
    return found


def _after_run(run: Path, registry: Registry, recipe: Recipe, trained: Witness | None) -> Checked | str:
    gc.collect()
    later = f"it was not loaded again, for {{}}: `pefttool check {run}` does it"
    if recipe.memory.stream or recipe.memory.offload:
        return later.format("the base is not all in the device's memory")
    opening = Opening(recipe.device, None, recipe.trust_remote_code)
    opened = opening.open(run, registry)
    needed, free = _size(opened), free_memory(opened.choice.device)
    if needed > free:
        return later.format(f"that takes {sizes.show(needed)} of memory, and {sizes.show(free)} are free")
    trained = trained or witness_file.kept(run_folder.witness(run), opened.choice.device)
    found: Checked | str
    if recipe.check == "process":
        found = check(run, registry, opening, AFTER_RUN, trained)
        write_json(run / CHECK, found.as_json())
    elif trained is None:
        return later.format("nothing is known of its answers")
    else:
        found = _loaded_again(opened, trained)
    witness_file.forget(run_folder.witness(run))
    return found


def _loaded_again(opened: Opened, trained: Witness) -> str:
    """What becomes of the adapter when it is loaded, in one line. Raises ModelError if it is not the trained one."""
    with tempfile.TemporaryDirectory(prefix="pefttool-check-") as name:
        judge = Judge(Path(name), lambda loaded: (), AFTER_RUN, trained.calls)
        asked = judge.ask("adapter", opened, look=lambda loaded: trained.require_values(loaded.model, opened.folder))
        found = trained.agrees(*asked, opened.folder)
    return f"loaded again, the adapter answers as the trained model did ({found})"


def _size(opened: Opened) -> int:
    """Bytes that the base takes where nothing is quantised, and what a process takes besides."""
    width = torch_dtype(opened.choice.dtype).itemsize
    readers = (Reader(path) for path in opened.path.glob("*.safetensors"))
    return LIBRARIES + sum(math.prod(shape) * width for reader in readers for _, shape in reader.shapes.values())


def _format(opened: Opened) -> str:
    """The first peft that takes the folder. Raises ModelError if its adapter_config.json says what does not hold."""
    path = opened.folder / peft_folder.CONFIG
    config = peft_folder.read_config(opened.folder)
    strange = peft_versions.unknown(config)
    if strange:
        raise ModelError(
            f"{path} has the field {strange[0]!r}, which peft {peft_versions.installed()} does not know and would pass"
            f" over (tested: {peft_versions.tested()}): install the peft that wrote it, or restore the file"
        )
    named, base = config.get("base_model_name_or_path"), opened.stored["base"]
    same = named in (None, base["path"], base["id"], base["reference"])  # None: of a model that is the task's own
    if not same and Path(str(named)).resolve() != opened.path.resolve():
        raise ModelError(
            f"{path} names the base {named!r}, and the adapter was trained on {base['path']!r}: plain peft would be"
            " given another model; restore the file"
        )
    return peft_versions.first(config)
