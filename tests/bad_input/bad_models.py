"""Model folders that are broken, and references that lead to none: what `pefttool run` says to them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import good_runs
from bad_entry import Entry

Spoil = Callable[[Path], object]


def run(model: str, data: Path, *more: str) -> list[str]:
    given = ["--adapter", "lora", "--model", model, "--data", str(data)]
    return ["run", *given, *good_runs.SMALL, "--out", str(data.parent / "out"), *more]


def spoilt(name: str, spoil: Spoil, *words: str, real: bool = False, more: tuple[str, ...] = ()) -> Entry:
    """A tiny model's folder, after `spoil(folder)`; the answer names the folder."""

    def make(folder: Path) -> list[str]:
        model = good_runs.model(folder)
        spoil(model)
        return run(str(model), good_runs.rows(folder), *more)

    return Entry(f"model/{name}", make, ("model", *words), real)


def reference(name: str, given: str, *words: str, real: bool = False) -> Entry:
    return Entry(f"model/{name}", lambda folder: run(given, good_runs.rows(folder)), words, real)


def write(name: str, content: str | bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def config(**changes: Any) -> Spoil:
    """Changes to config.json; None takes a key away."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        document = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))

    return change


def cut(name: str, keep: int) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def renamed(name: str, new: str) -> Spoil:
    return lambda folder: (folder / name).rename(folder / new)


def tensors(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """The weights, after a change of the tensors by name."""

    def spoil(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        held = load_file(folder / "model.safetensors")
        change(held)
        save_file({n: t.contiguous() for n, t in held.items()}, folder / "model.safetensors", {"format": "pt"})

    return spoil


def index(weight_map: dict[str, str] | str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        text = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text)

    return spoil


def remote(folder: Path) -> None:
    config(model_type="acme-x", auto_map={"AutoConfig": "modeling_acme.AcmeConfig"})(folder)
    (folder / "modeling_acme.py").write_text("raise SystemExit('this ran')\n")


def foreign(folder: Path) -> None:
    config(model_type="acme-x", auto_map={"AutoConfig": "other/repository--modeling_acme.AcmeConfig"})(folder)


WEIGHTS, CONFIG = "model.safetensors", "config.json"
EMBEDDING = "embeddings.word_embeddings.weight"


def _of_config() -> Iterator[Entry]:
    yield spoilt("no config", lambda f: (f / CONFIG).unlink(), "has no config.json", "save_pretrained")
    yield spoilt("an empty config", write(CONFIG, ""), "config.json", "get it again")
    yield spoilt("a truncated config", cut(CONFIG, 100), "config.json", "get it again")
    yield spoilt("a config that is a list", write(CONFIG, "[]"), "holds list", "a JSON object", "get it again")
    yield spoilt("a binary config", write(CONFIG, bytes(range(256))), "config.json", "get it again")
    yield spoilt("a config nested too deeply", write(CONFIG, "[" * 100_000), "config.json", "get it again")
    yield spoilt("no model type", config(model_type=None), "config.json cannot be used", "model_type")
    yield spoilt("an unknown model type", config(model_type="acme-x"), "config.json cannot be used", "acme-x")
    yield spoilt("a model type of numbers", config(model_type=5), "config.json cannot be used")
    yield spoilt("a size in words", config(hidden_size="large"), "config.json cannot be used", "hidden_size")
    yield spoilt("a size below zero", config(hidden_size=-64), "-64", "mend its config.json")
    yield spoilt("a size of zero", config(hidden_size=0), "config.json")
    yield spoilt("heads that do not fit", config(num_attention_heads=7), "config.json", "attention heads")
    yield spoilt("an unknown activation", config(hidden_act="acme"), "config.json", "acme")
    yield spoilt("layers in words", config(num_hidden_layers="two"), "config.json cannot be used", "num_hidden_layers")
    yield spoilt("another vocabulary", config(vocab_size=100), EMBEDDING, "another shape", "restore its files")
    yield spoilt("code of its own", remote, "'acme-x'", "--trust-remote-code", "/model@", real=True)
    trust = ("--trust-remote-code", "acme/x@0123456789abcdef0123456789abcdef01234567")
    yield spoilt("trust in another", remote, "acme/x@", "/model@", "give exactly that", more=trust)
    yield spoilt("trust where nothing is", config(), "has no code of its own", "drop the flag", more=trust)
    yield spoilt("code of others", foreign, "'acme-x'", "--trust-remote-code")
    kernels = {"attn_implementation": "acme/kernels"}
    yield spoilt("a kernel of the hub", config(**kernels), "'acme/kernels'", "compiled code", "remove that key")
    yield spoilt("a kernel within", config(text_config=kernels), "'acme/kernels'", "remove that key")
    gptq = {"quant_method": "gptq", "bits": 4}
    yield spoilt("quantised in another way", config(quantization_config=gptq), "stored by 'gptq'", "the 16-bit model")
    yield spoilt("quantised in words", config(quantization_config="4 bits"), "config.json")


def _of_weights() -> Iterator[Entry]:
    yield spoilt("no weights", lambda f: (f / WEIGHTS).unlink(), "weights found: none", "save_pretrained")
    yield spoilt(
        "a pickle", renamed(WEIGHTS, "pytorch_model.bin"), "only as safetensors", 'python -c "import', real=True
    )
    yield spoilt("a .pt file", renamed(WEIGHTS, "weights.pt"), "only as safetensors", "weights_only=True", "weights.pt")
    yield spoilt("a .ckpt file", renamed(WEIGHTS, "last.ckpt"), "only as safetensors", "weights_only=True", "last.ckpt")
    yield spoilt("a .pth file with a quote", renamed(WEIGHTS, "a'; b.pth"), "weights_only=True", "'a'\"'\"'; b.pth'")
    yield spoilt("GGUF", renamed(WEIGHTS, "model.gguf"), "weights found: model.gguf", "save_pretrained")
    yield spoilt("safetensors of another name", renamed(WEIGHTS, "adapter.safetensors"), "adapter.safetensors", "give")
    yield spoilt("a byte too few", cut(WEIGHTS, -1), "promises", "get the file again")
    yield spoilt("a truncated header", cut(WEIGHTS, 20), "cut off", "get it again")
    yield spoilt("empty weights", write(WEIGHTS, b""), "cut off", "get it again")
    yield spoilt("a pointer", write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"), "git lfs pull")
    yield spoilt("a header of terabytes", write(WEIGHTS, struct.pack("<Q", 1 << 42) + b"{}"), "not a safetensors file")
    broken = struct.pack("<Q", 8) + b"{broken}"
    yield spoilt("a broken header", write(WEIGHTS, broken), "broken safetensors header", "get the file again")
    yield spoilt("a header that is a list", write(WEIGHTS, struct.pack("<Q", 2) + b"[]"), "broken safetensors header")
    yield spoilt("another shape", tensors(lambda t: t.update({EMBEDDING: t[EMBEDDING][:9]})), EMBEDDING, "restore")
    yield spoilt("a missing shard", index({EMBEDDING: "model-2.safetensors"}), "lists model-2.safetensors", "download")
    yield spoilt("a shard outside", index({EMBEDDING: "../rows.jsonl"}), "'../rows.jsonl'", "same folder")
    yield spoilt("a shard at the root", index({EMBEDDING: "/etc/passwd"}), "'/etc/passwd'", "same folder")
    yield spoilt("a shard that is a pickle", index({EMBEDDING: "model-1.bin"}), "'model-1.bin'", ".safetensors file")
    yield spoilt("a shard of numbers", index('{"weight_map": {"a": 5}}'), "lists 5", ".safetensors file")
    yield spoilt(
        "an index of another model", index({"acme": "model-1.safetensors"}), "lacks 'acme'", "download it again"
    )
    yield spoilt("an empty index", index({}), "no `weight_map`", "download it again")
    yield spoilt("a broken index", index('{"weight_map": {'), "index.json", "get it again")


def _others() -> Iterator[Entry]:
    yield spoilt("no tokenizer", _no_tokenizer, "AutoTokenizer", "add its tokenizer files")
    yield spoilt("a broken tokenizer", write("tokenizer.json", "{"), "AutoTokenizer", "add its tokenizer files")
    yield spoilt("a tokenizer of another kind", write("tokenizer.json", "{}"), "AutoTokenizer")
    yield spoilt("a broken tokenizer config", write("tokenizer_config.json", "{"), "AutoTokenizer")
    yield reference("no such folder", "./no-such-model", "no such folder", "ORG/NAME[@REVISION]")
    yield reference("one word", "gpt2", "'gpt2'", "no such folder", "openai-community/gpt2")
    yield reference("another word", "nothing", "'nothing'", "no such folder", "ORG/NAME[@REVISION]")
    yield reference("a path of Windows", r"C:\models\x", "no such folder", "ORG/NAME")
    yield reference("no revision", "org/name@", "'' is not a revision", "give a branch")
    yield reference("a revision outside", "org/name@../../x", "is not a revision", "give a branch")
    yield reference("spaces", "org/a name", "not a name on the hub")
    yield reference("a name too long", "org/" + "x" * 5000, "not a name on the hub")
    yield reference("an unknown source", "exmple:x", "'exmple'", "did you mean 'example'")
    yield reference("an unknown example", "example:smollm", "'smollm'", "allowed:")
    yield reference("data for a model", "example:movie-snippets", "is data", "allowed:")
    yield reference("not in the cache", "acme-nobody/no-model", "not in the cache", "HF_HUB_OFFLINE", "give a folder")
    yield Entry(
        "model/a file", lambda f: run(str(good_runs.rows(f)), f / "rows.jsonl"), ("is a file", "give the folder")
    )
    yield spoilt("an adapter", _adapter, "it is an adapter", "give the base model")


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def _adapter(folder: Path) -> None:
    (folder / CONFIG).rename(folder / "adapter_config.json")


ENTRIES = [*_of_config(), *_of_weights(), *_others()]
