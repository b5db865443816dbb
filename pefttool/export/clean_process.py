"""An adapter in a process that has never heard of pefttool: transformers and peft, or the adapter's own loader.

The script that runs there is written out, so that whoever doubts can run it. It loads the base and the adapter, makes
the recorded calls, and leaves the answers in files.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import ModelError
from pefttool.export.reload import Opened
from pefttool.files.model_folder import CONFIG, SINGLE
from pefttool.inference import recorded_calls
from pefttool.nn import added_positions
from pefttool.toolkit import loader_code, peft_folder

if TYPE_CHECKING:
    from torch import nn

    from pefttool.inference.recorded_calls import Outputs

SCRIPT, REPORT = "check.py", "report.json"
#: Variables that would make the process one of several, or let it import from elsewhere.
DROPPED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH")
#: Seconds.
LONGEST = 3600

PEFT = """
config = transformers.AutoConfig.from_pretrained({folder!r})
base = transformers.{name}.from_pretrained({base!r}, config=config, ignore_mismatched_sizes=True, **{arguments})
{prepared}import peft
model = peft.PeftModel.from_pretrained(base, {adapter!r})
"""
LOADER = """
import runpy
model = runpy.run_path({loader!r})["model"]
"""
WHOLE = """
model = transformers.{name}.from_pretrained({adapter!r}, **{arguments})
"""
FRAME = '''"""Made by pefttool: loads an adapter without it, and answers the calls beside this file."""
import json, re, sys, warnings
from pathlib import Path

import torch, transformers
from safetensors.torch import load_file, save_file

transformers.utils.logging.set_verbosity_error()
INSIDE, POSITIONS, Any, Outputs, Mapping = re.compile({inside!r}), {positions}, object, dict, dict
HERE, ADDED = Path(__file__).parent, {added}

{answers}

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
{model}
if isinstance(model, torch.nn.Module):
    model = model.eval(){placed}
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # bitsandbytes would repack the weights
for number, others in enumerate(json.loads((HERE / "calls.json").read_text())):
    given = {{**others, **load_file(HERE / f"{{number}}.safetensors")}}
    given = {{k: v.to({device!r}) if isinstance(v, torch.Tensor) else v for k, v in given.items()}}
    placed = [v for k, v in sorted(given.items()) if k.isdecimal()]
    named = {{k: v for k, v in given.items() if not k.isdecimal()}}
    with torch.no_grad(), torch.autocast({kind!r}, getattr(torch, {dtype!r}), enabled={autocast}):
        found = answers(of_text(model(*placed, **shifted(named, ADDED)), named, ADDED))
    save_file({{k: v.contiguous() for k, v in found.items()}}, HERE / f"clean-{{number}}.safetensors")
assert not [m for m in sys.modules if m.startswith("pefttool")], "pefttool was imported"
said = [str(w.message) for w in caught if "adapter keys" in str(w.message)]
versions = {{m: sys.modules[m].__version__ for m in ("transformers", "peft") if m in sys.modules}}
(HERE / {report!r}).write_text(json.dumps({{"warnings": said, "versions": versions}}))
'''


@dataclass(frozen=True)
class Clean:
    """`answers` one by one, the versions of the libraries that gave them, and what peft warned of."""

    answers: Iterator[Outputs]
    versions: dict[str, str]
    warnings: tuple[str, ...]


def why_none(opened: Opened) -> str:
    """Why `script` gives no script."""
    if _onto_plain_weights(opened):
        return "plain peft puts it onto weights that are not quantised; onto quantised ones, only pefttool does"
    return "transformers and peft alone cannot build this model, so only pefttool loads it"


def _onto_plain_weights(opened: Opened) -> bool:
    """The folder names some layers by their weights (peft_targets.py), and these are packed."""
    config = opened.folder / peft_folder.CONFIG
    return (
        opened.quantization is not None
        and config.is_file()
        and bool(peft_folder.read_config(opened.folder).get("target_parameters"))
    )


def script(opened: Opened, model: nn.Module, folder: Path) -> str | None:
    """Python for a file in `folder` that defines and asks the model; None where no library alone can make it.

    `model` is the adapted one: how it was built is read from it.
    """
    import transformers

    if _onto_plain_weights(opened):
        return None
    get_base = getattr(model, "get_base_model", None)
    base: Any = get_base() if get_base is not None else model
    name = type(base).__name__
    theirs = getattr(transformers, name, None) is type(base)
    adapter, choice = opened.folder.resolve(), opened.choice
    loaders = sorted(adapter.glob("load_*.py"))
    arguments: dict[str, Any] = {"dtype": choice.dtype}
    if (adapter / peft_folder.CONFIG).is_file() and theirs:
        quantised = _write_config(base, folder, opened.quantization is not None and opened.quantization.stored_already)
        if quantised:
            arguments |= {**quantised, "device_map": {"": choice.device}}
        made = PEFT.format(
            folder=str(folder),
            name=name,
            base=str(opened.path.resolve()),
            adapter=str(adapter),
            arguments=arguments,
            prepared=loader_code.as_trained(base, "base", choice.dtype),
        )
    elif loaders:
        _require_ours(opened, model, loaders[0], folder)
        made = LOADER.format(loader=str(loaders[0]))
    elif theirs and (adapter / SINGLE).is_file() and (adapter / CONFIG).is_file():
        made = WHOLE.format(name=name, adapter=str(adapter), arguments=arguments)
    else:
        return None
    functions: tuple[Any, ...] = (recorded_calls.answers, added_positions.shifted, added_positions.of_text)
    return FRAME.format(
        inside=recorded_calls.INSIDE.pattern,
        positions=recorded_calls.POSITIONS,
        answers="\n".join(map(inspect.getsource, functions)),
        added=opened.added_positions,
        model="\n".join(f"    {line}" if line else "" for line in made.splitlines()),
        placed="" if "device_map" in arguments else f".to({choice.device!r})",
        device=choice.device,
        kind=choice.device.partition(":")[0],
        dtype=choice.autocast or "bfloat16",
        autocast=choice.autocast is not None,
        report=REPORT,
    )


def _require_ours(opened: Opened, model: nn.Module, loader: Path, folder: Path) -> None:
    """Raise ModelError unless this Python file is, to the byte, what the adapter would write now.

    An adapter's folder is data: what somebody else wrote into it is not run.
    """
    assert opened.adapter is not None
    fresh = folder / "own"
    opened.adapter.save(model, fresh)
    own = fresh / loader.name
    if not own.is_file() or own.read_bytes() != loader.read_bytes():
        raise ModelError(
            f"{loader} is not what pefttool writes for this adapter on this base, and is not run: restore the file, or"
            " read it and run it yourself"
        )
    shutil.rmtree(fresh)


def _write_config(model: Any, folder: Path, stored_already: bool) -> dict[str, Any]:
    """Write the model's configuration as its base's, and return how that is to be quantised, as plain values.

    A base that is `stored_already` in fewer bits has that in its configuration, and any other is not quantised yet.
    """
    document = json.loads(model.config.to_json_string(use_diff=False))
    quantised = document.get("quantization_config")
    if not stored_already:
        document.pop("quantization_config", None)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(document), encoding="utf-8")
    if quantised is None:
        return {}
    plain = {k: v for k, v in quantised.items() if not k.startswith("_")}
    return {"quantization_config": None if stored_already else plain}


def run(source: str, folder: Path) -> Clean:
    """Run the script in `folder`, where the calls are. Raises ModelError with the last line that it said."""
    (folder / SCRIPT).write_text(source, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k not in DROPPED and not k.startswith("ACCELERATE")}
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(folder / SCRIPT)],
            capture_output=True,
            text=True,
            env={**environment, "HF_HUB_OFFLINE": "1"},
            timeout=LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"without pefttool the adapter gave no answer in {LONGEST} s: try fewer rows") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise ModelError(
            f"the adapter cannot be used without pefttool: {' '.join(lines[-1].split())[:300]}; restore the folder, or"
            " report this"
        )
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    count = len(json.loads((folder / "calls.json").read_text(encoding="utf-8")))
    answers = (peft_folder.read_tensors(folder / f"clean-{number}.safetensors") for number in range(count))
    return Clean(answers, report["versions"], tuple(report["warnings"]))
