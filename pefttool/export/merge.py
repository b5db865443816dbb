"""`pefttool merge`: an adapter folded into its base's weights, and proof that the result answers as the adapter did.

Written aside, compared, renamed: a merge that fails leaves nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pefttool.api.errors import NotMergeable, RunError, UsageError
from pefttool.api.quantizer import Quantizer
from pefttool.api.values import Row
from pefttool.config.registry import Registry
from pefttool.export import held_out, merge_in_parts, reload
from pefttool.export.answers import Judge
from pefttool.export.reload import DEFAULT, Opened, Opening, Reloaded
from pefttool.files import durable, safetensors_file
from pefttool.files.fingerprint import weight_files
from pefttool.files.model_folder import INDEX, SINGLE, read_index
from pefttool.inference import agreement
from pefttool.inference.agreement import TOLERANCE, Agreement
from pefttool.models import facts
from pefttool.models.pretrained import LocalPretrained
from pefttool.models.quantization import Quantization
from pefttool.models.quantized import dequantise, stored_by
from pefttool.runs.adapter_facts import ADAPTER_FACTS, MERGED
from pefttool.runs.artefacts import save_processor, write_json
from pefttool.setup.precision import torch_dtype
from pefttool.toolkit import peft_folder
from pefttool.toolkit.model_parts import transformers_part
from pefttool.toolkit.quiet import quiet_loading

Into = Literal["trained-on", "original"]
#: Below this share of the adapter's effect the merged model answers more as the base than as the adapter.
LOST = 0.5
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Merged:
    """`whole` is why the model was merged in memory, or None where it was merged layer by layer. `plain` is the class
    of transformers that loads the folder, or None where the head is the task's own. `as_trained` compares with the
    adapter on the weights that it was trained on, where those were not merged into."""

    folder: Path
    into: Into
    dtype: str
    whole: str | None
    plain: str | None
    agreement: Agreement
    tolerance: float
    as_trained: Agreement | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "into": self.into,
            "dtype": self.dtype,
            "in_parts": self.whole is None,
            "whole_because": self.whole,
            "transformers_class": self.plain,
            **self.agreement.as_json(),
            "tolerance": self.tolerance,
            "as_trained": None if self.as_trained is None else self.as_trained.as_json(),
        }


@dataclass(frozen=True)
class Wanted:
    """Into which weights an adapter is merged, in which dtype the result is saved (None: by the base), and how far its
    answers may be apart (None: by the dtypes)."""

    into: Into = "trained-on"
    save_as: str | None = None
    tolerance: float | None = None


USUAL = Wanted()


def merge(
    run: Path,
    registry: Registry,
    out: Path | None = None,
    wanted: Wanted = USUAL,
    opening: Opening = DEFAULT,
) -> Merged:
    """Merge the adapter of `run` into `out` (default: `run/merged`), compare, and only then let the folder appear.

    Raises NotMergeable(reason), RunError if the two answer differently, UsageError for a folder that is in use.
    """

    def rows(loaded: Reloaded) -> Sequence[Row]:
        return held_out.of(run, registry, loaded, opening.data, opening.data_format)

    into, opened = wanted.into, opening.open(run, registry)
    adapter = opened.adapter
    if adapter is None:
        raise UsageError(f"{run} is merged already: use it as it is")
    if opened.trusted:
        raise NotMergeable(
            f"the base {opened.path} needs code of its own, which no folder takes along: use {run} as it is"
        )
    target = run / MERGED if out is None else out
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"out: {target} exists and is not empty: choose another --out, or remove it")
    quantization = opened.quantization if into == "trained-on" else None
    quantized = quantization is not None
    if into == "original" and opened.quantization is not None and opened.quantization.stored_already:
        raise UsageError(
            f"into: {opened.path} is stored as {opened.quantization.name} and holds no original weights: drop --into"
        )
    if quantization is not None and not quantization.stored_already and not _says_what_becomes(quantization):
        name = quantization.name
        raise NotMergeable(f"quantizer {name!r} does not say what becomes of a weight: use --into original")
    saved = wanted.save_as or _saved_dtype(opened, quantized)
    aside = target.with_name(f".{target.name}.partial")
    try:
        whole, plain = _write(opened, quantized, into, saved, aside)
        merged = reload.open_folder(aside, registry, opening.device, opening.dtype)
        found, as_trained = _compare(opened, merged, into, rows)
        allowed = (
            wanted.tolerance if wanted.tolerance is not None else max(TOLERANCE[saved], TOLERANCE[opened.choice.dtype])
        )
        _require_agreement(found, allowed)
        durable.publish(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Merged(target, into, saved, whole, plain, found, allowed, as_trained)


def _says_what_becomes(quantization: Quantization) -> bool:
    return type(quantization.quantizer).round_trip is not Quantizer.round_trip


def _write(opened: Opened, quantized: bool, into: Into, saved: str, aside: Path) -> tuple[str | None, str | None]:
    """The whole folder; (why it was merged in memory, the class that loads it) as in `Merged`."""
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        layout = merge_in_parts.find(opened, quantized)
        if isinstance(layout, str):
            whole, plain = layout, _whole(opened, quantized, saved, aside)
        else:
            merge_in_parts.Writer(layout, torch_dtype(saved), aside).write()
            whole, plain = None, None if layout.prefix else type(layout.part).__name__
        if (opened.path / GENERATION).is_file():
            shutil.copyfile(opened.path / GENERATION, aside / GENERATION)
        _describe(opened, into, aside)
    except OSError as error:
        what = error.filename or aside
        raise UsageError(f"out: {what}: {error.strerror or error}: make room, or choose another --out") from error
    return whole, plain


def _saved_dtype(opened: Opened, quantized: bool) -> str:
    """The base's own; what was quantised is saved in 16 bits."""
    names = [SINGLE] if (opened.path / SINGLE).is_file() else sorted(read_index(opened.path / INDEX, str(opened.path)))
    sizes: Counter[str] = Counter()
    for name in names:
        for spec in safetensors_file.Reader(opened.path / name).shapes.values():
            dtype = str(spec[0]).removeprefix("torch.")
            if dtype in TOLERANCE:
                sizes[dtype] += safetensors_file.size(spec)
    stored = sizes.most_common(1)[0][0] if sizes else "float32"
    if quantized and stored == "float32":
        return opened.choice.dtype if opened.choice.dtype != "float32" else "bfloat16"
    return stored


def _whole(opened: Opened, quantized: bool, saved: str, aside: Path) -> str | None:
    """Merge with the model in memory, once, and write it; the class that loads it, as in `Merged`."""
    import torch

    adapter = opened.adapter
    assert adapter is not None
    quantization = opened.quantization if quantized else None
    # In float32, whatever it was trained in: the base's values are those of its files, and rounded once, at the end.
    if quantization is not None and quantization.stored_already:
        model = opened.base().model
        heads = opened.heads(model)
        dequantise(model, quantization.quantizer, facts.inspect(model, opened.task).linear_modules)
        model.float()
    else:
        on_host = replace(opened.choice, device="cpu", dtype="float32", autocast=None)
        found = replace(opened, choice=on_host).base(quantized=False)
        model, missing = found.model, found.missing
        heads = opened.heads(model)
        if quantization is not None:
            _as_trained(opened, quantization, model, missing)
    model = adapter.load(model, opened.folder)
    reload.load_head(model, heads, peft_folder.read_head(opened.folder), opened.folder)
    model = adapter.merge(model)
    part = transformers_part(model)
    if part is None:
        raise NotMergeable(
            f"task {opened.task.name!r}: {type(model).__name__} holds no transformers model; deliver the adapter folder"
        )
    for tensor in (*part.parameters(), *part.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch_dtype(saved))
    with torch.no_grad(), quiet_loading():
        part.save_pretrained(aside, max_shard_size="2GB")
    if part is model:
        return type(part).__name__
    inside = {id(tensor) for tensor in (*part.parameters(), *part.buffers())}
    own = {**dict(model.named_parameters()), **peft_folder.buffers(model)}
    outside = {name: tensor for name, tensor in own.items() if id(tensor) not in inside}
    peft_folder.write_tensors(aside / peft_folder.HEAD, outside)
    return None


def _as_trained(opened: Opened, quantization: Quantization, model: Any, missing: Sequence[str]) -> None:
    """Give the base, in float32, the values of training: in the run's dtype, its linear layers quantised."""
    stored = stored_by(quantization.quantizer, model, facts.inspect(model, opened.task).linear_modules)
    linear = {f"{name}.weight" for name in stored}
    for name, parameter in model.named_parameters():
        rounded = parameter.data.to(torch_dtype(opened.choice.dtype))
        if name in linear and name not in missing:  # what the folder lacks is not quantised
            rounded = quantization.round_trip(rounded.to(opened.choice.device)).cpu()
        parameter.data = rounded.float()


def _describe(opened: Opened, into: Into, aside: Path) -> None:
    """Processor and `pefttool.json`, so that `predict`, `eval` and `chat` take the folder as they take a run's."""
    source = LocalPretrained(opened.path, {"dtype": torch_dtype(opened.choice.dtype)}, abstract=True)
    save_processor(opened.task.load(source, opened.setting).processor, aside)
    merged = {
        "adapter": opened.stored["adapter"],
        "adapter_options": opened.stored["adapter_options"],
        "into": into,
        "quantize": opened.stored["quantize"],
        "quantize_options": opened.stored["quantize_options"],
        "base": opened.stored["base"],
        "sha256": weight_files(aside),
    }
    write_json(aside / ADAPTER_FACTS, {**opened.stored, "quantize": None, "quantize_options": None, MERGED: merged})


def _compare(
    opened: Opened, merged: Opened, into: Into, rows: Callable[[Reloaded], Sequence[Row]]
) -> tuple[Agreement, Agreement | None]:
    """(the merged model with the adapter on what it was merged into, and with the adapter as it was trained)."""
    with tempfile.TemporaryDirectory(prefix="pefttool-merge-") as folder:
        judge = Judge(Path(folder), rows)
        trained, base = judge.ask("trained", opened)
        reference = trained
        if into == "original" and opened.quantization is not None:
            reference, base = judge.ask("original", opened, quantized=False)
        answers, _ = judge.ask("merged", merged)
        try:
            found = agreement.compare(reference, answers, base, judge.classes)
            as_trained = None if reference is trained else agreement.compare(trained, answers, None, judge.classes)
        except ValueError as error:
            raise RunError(f"the merged model does not answer as the adapter: {error}; please report this") from error
    return found, as_trained


def _require_agreement(found: Agreement, allowed: float) -> None:
    """Raises RunError where the merged model is another one."""
    if not found.within(allowed):
        raise RunError(
            f"the merged model does not answer as the adapter: {found}, where {allowed:g} is allowed; nothing was"
            " kept: --save-as float32 rounds less, --tolerance allows more, and the adapter folder can be used as it is"
        )
    if found.share is not None and found.share < LOST:
        raise RunError(
            f"the merged model has lost the adapter: it has {found.share:.0%} of its effect on the outputs, which"
            f" rounding swallowed; nothing was kept: use --save-as float32, or the adapter folder as it is ({found})"
        )
