"""What a model folder must hold: config.json and complete safetensors. Checks read headers only, never weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Iterable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import ModelError
from pefttool.files.safetensors_file import MAX_HEADER

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: Weights in formats that this tool does not open: most of them are pickles, which run code when they are read.
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
#: Those that are pickles, as a rule.
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
#: What a trainer leaves beside weights.
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
#: Fetched before any weight: configs, tokenizers, processors, chat templates.
SMALL_SUFFIXES = (".json", ".txt", ".jinja", ".model", ".tiktoken")
TEMPLATES = "additional_chat_templates/"


def is_small(name: str, code: bool = False) -> bool:
    """Whether the file called `name` in a repository belongs to the config, the tokenizer or the processor.

    Python files do with `code`, which has to be trusted.
    """
    top = name.removeprefix(TEMPLATES)
    skip = "/" in top or name.endswith((".bin.index.json", ".h5.index.json", ".msgpack.index.json"))
    return not skip and name.endswith((*SMALL_SUFFIXES, ".py") if code else SMALL_SUFFIXES)


def check_folder(folder: Path, label: str, weights: bool = True) -> None:
    """Raise ModelError unless `folder` holds config.json and safetensors that are all there, to the last byte.

    Without `weights`, config.json is enough. `label` is how messages name the model.
    """
    if not (folder / CONFIG).is_file():
        hint = (
            "it is an adapter: give the base model that its adapter_config.json names"
            if (folder / "adapter_config.json").is_file()
            else "give a folder that `save_pretrained` wrote, or ORG/NAME on the hub"
        )
        raise ModelError(f"model {label}: {folder} has no {CONFIG}; {hint}")
    _read_object(folder / CONFIG, label)
    if not weights:
        return
    require_safetensors([path.name for path in folder.iterdir()], label, str(folder))
    if (folder / SINGLE).is_file():
        tensor_names(folder / SINGLE, label)
        return
    for shard, tensors in read_index(folder / INDEX, label).items():
        if not (folder / shard).is_file():
            raise ModelError(
                f"model {label}: {INDEX} lists {shard}, which is not in {folder}: copy or download it again"
            )
        missing = sorted(tensors - tensor_names(folder / shard, label))
        if missing:
            raise ModelError(
                f"model {label}: {shard} lacks {missing[0]!r} ({len(missing)} tensors in all), which {INDEX} places"
                " there: the files are not of one model; download it again"
            )


def require_safetensors(names: Collection[str], label: str, place: str) -> None:
    """Raise ModelError unless `names`, the files of a folder or repository, include loadable safetensors."""
    if SINGLE in names or INDEX in names:
        return
    others = sorted(n for n in names if n.endswith(OTHER_WEIGHTS) and "/" not in n)
    pickled = [n for n in others if n.endswith(PICKLED) and n.partition(".")[0] not in NO_WEIGHTS]
    if pickled:
        whole = any(n.startswith("pytorch_model") for n in pickled)
        command = conversion_command(place) if whole else file_conversion_command(place, pickled[0])
        raise ModelError(
            f"model {label}: base weights are accepted only as safetensors, found {_some(others)}; if you trust them,"
            f" convert them once and give the new folder: {command}"
        )
    found = sorted(n for n in names if n.endswith(".safetensors")) + others
    raise ModelError(
        f"model {label}: {place} has neither {SINGLE} nor {INDEX} (weights found: {_some(found)});"
        " give a model that transformers' `save_pretrained` wrote"
    )


def conversion_command(place: str, out: str = "converted") -> str:
    """A shell command that rewrites a model in PyTorch's old format as safetensors, into the folder `out`.

    transformers reads such files with `weights_only=True`: tensors, and no other objects.
    """
    code = (
        "import transformers as t, sys; p, o = sys.argv[1:]; c = t.AutoConfig.from_pretrained(p);"
        " getattr(t, c.architectures[0]).from_pretrained(p).save_pretrained(o);"
        " t.AutoTokenizer.from_pretrained(p).save_pretrained(o)"
    )
    return f'python -c "{code}" {quote(place)} {quote(out)}'


def file_conversion_command(place: str, name: str, out: str = "converted") -> str:
    """The same for one file of tensors by name, which transformers does not know: beside it, or in a download."""
    code = (
        "import sys, torch; from safetensors.torch import save_file;"
        " s = torch.load(sys.argv[1], map_location='cpu', weights_only=True); s = s.get('state_dict', s);"
        f" save_file({{k: v.clone().contiguous() for k, v in s.items()}}, '{SINGLE}', {{'format': 'pt'}})"
    )
    folder = place if Path(place).is_dir() else out
    fetch = "" if folder == place else f"hf download {quote(place)} --local-dir {quote(out)} && "
    return f'{fetch}cd {quote(folder)} && python -c "{code}" {quote(name)}'


def read_index(path: Path, label: str) -> dict[str, set[str]]:
    """Shard file name -> names of its tensors, from an index file."""
    weight_map = _read_object(path, label).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"model {label}: {path} has no `weight_map`: download it again")
    shards: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise ModelError(
                f"model {label}: {path} lists {shard!r}: expected a .safetensors file of the same folder: get it again"
            )
        shards.setdefault(shard, set()).add(tensor)
    return shards


def tensor_names(path: Path, label: str) -> set[str]:
    """The tensors in a safetensors file. Raises ModelError if its header is broken or the file is not all there."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise ModelError(
                f"model {label}: {path} is a git-lfs pointer, not the weights: run `git lfs pull` in its folder"
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
        if length > min(MAX_HEADER, size - 8):
            raise ModelError(
                f"model {label}: {path} ({size} bytes) is not a safetensors file, or is cut off: get it again"
            )
        try:
            header = json.loads(stream.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ModelError(f"model {label}: {path} has a broken safetensors header: get the file again") from error
    if size != 8 + length + end:
        raise ModelError(
            f"model {label}: {path} has {size} bytes where its header promises {8 + length + end}: get the file again"
        )
    return set(tensors)


def tensor(folder: Path, name: str) -> Tensor | None:
    """One tensor of a model folder that `check_folder` found good, on the CPU; None where none has this name."""
    from safetensors import safe_open

    whole = (folder / SINGLE).is_file()
    shards = [SINGLE] if whole else [n for n, names in read_index(folder / INDEX, str(folder)).items() if name in names]
    for shard in shards:
        with safe_open(folder / shard, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118 (no mapping: it has no `in` of its own)
                found: Tensor = file.get_tensor(name)
                return found
    return None


def _read_object(path: Path, label: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"model {label}: {path} cannot be read: {' '.join(str(error).split())}; get it again"
        ) from error
    if not isinstance(value, dict):
        raise ModelError(f"model {label}: {path} holds {type(value).__name__}, expected a JSON object; get it again")
    return value


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more if listed else "none"
