"""Models from a folder and from a source, and references that are neither."""

from __future__ import annotations

import json
import os
import shlex
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_hub import safetensors_bytes
from safetensors.numpy import save_file

from pefttool.api.data import Source
from pefttool.api.errors import ModelError
from pefttool.files import cache_folder, model_folder
from pefttool.models import hub

NO_SOURCES: Any = SimpleNamespace(sources={})


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    save_file({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, folder / "model.safetensors")
    return folder


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "acme" / "model")
    assert hub.resolve(str(folder), NO_SOURCES, weights=True) == hub.LocalModel(folder, str(folder))
    monkeypatch.chdir(tmp_path)
    found = hub.resolve("acme/model", NO_SOURCES, weights=False)  # a folder goes before the hub
    assert (found.path, found.id, found.reference) == (folder, str(folder), str(folder))


def break_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"dtype"', b'"dtype|'))


def long_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")


def shards(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "holds list, expected a JSON object"),
        (lambda f: (f / "model.safetensors").unlink(), "weights found: none"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "only as safetensors"),
        (lambda f: os.truncate(f / "model.safetensors", (f / "model.safetensors").stat().st_size - 1), "promises"),
        (lambda f: os.truncate(f / "model.safetensors", 11), "cut off"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cut off"),
        (lambda f: (f / "model.safetensors").write_bytes(b"version https://git-lfs..."), "git lfs pull"),
        (break_header, "broken safetensors header"),
        (long_header, "is not a safetensors file"),
        (lambda f: shards(f, {"w": "model-1.safetensors", "v": "model-2.safetensors"}), "lists model-2.safetensors"),
        (lambda f: shards(f, {"w": "model-1.safetensors", "v": "model-1.safetensors"}), "lacks 'v'"),
        (lambda f: shards(f, {"w": "../model-1.safetensors"}), "of the same folder"),
        (lambda f: shards(f, {}), "no `weight_map`"),
    ],
)
def test_broken_folders_are_refused_with_one_line(tmp_path: Path, spoil: Any, words: str) -> None:
    folder = write_model(tmp_path / "model")
    spoil(folder)
    for weights in (False, True):
        with pytest.raises(ModelError) as caught:
            hub.resolve(str(folder), NO_SOURCES, weights=weights)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)


def test_shards_that_are_all_there_pass(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    shards(folder, {"w": "model-1.safetensors"})
    assert hub.resolve(str(folder), NO_SOURCES, weights=True).path == folder


def test_adapter_folder_points_to_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="it is an adapter"):
        hub.resolve(str(tmp_path), NO_SOURCES, weights=True)


@pytest.mark.slow
def test_conversion_command_converts(tmp_path: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    config = BertConfig(
        vocab_size=7, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, architectures=["BertModel"]
    )
    model = BertModel(config)
    config.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a"))).save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        hub.resolve(str(tmp_path), NO_SOURCES, weights=True)
    command = str(caught.value).split("give the new folder: ")[1]
    assert command == model_folder.conversion_command(str(tmp_path))
    subprocess.run(
        command.replace("python", sys.executable, 1), shell=True, cwd=tmp_path, check=True, capture_output=True
    )
    assert hub.resolve(str(tmp_path / "converted"), NO_SOURCES, weights=True).path == tmp_path / "converted"


class Shelf(Source):
    name = "shelf"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self, reference: str) -> Path:
        if reference == "broken":
            raise KeyError("two\nlines")
        if reference == "unknown":
            raise ModelError("no such book")
        return self.folder

    def data(self, reference: str) -> Path:
        raise NotImplementedError


class Sources(dict[str, Source]):
    def owner(self, name: str) -> Any:
        return SimpleNamespace(owner="shelf-package 1.0")


def test_sources(tmp_path: Path) -> None:
    registry: Any = SimpleNamespace(sources=Sources(shelf=Shelf(write_model(tmp_path / "model"))))
    assert hub.resolve("shelf:a/b:c", registry, weights=False).reference == "shelf:a/b:c"
    with pytest.raises(ModelError, match="did you mean 'shelf'"):
        hub.resolve("shelv:x", registry, weights=False)
    with pytest.raises(ModelError, match="no such book"):
        hub.resolve("shelf:unknown", registry, weights=False)
    with pytest.raises(ModelError, match=r"source 'shelf' from shelf-package 1.0 failed: KeyError: 'two\\nlines'"):
        hub.resolve("shelf:broken", registry, weights=False)
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"'shelf:x'.*has no config.json"):
        hub.resolve("shelf:x", registry, weights=False)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("", "no such folder"),
        ("mistral", "nor ORG/NAME"),
        ("gpt2", "on the hub it is openai-community/gpt2: use that"),
        ("./missing", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("~/no-such-folder/x", "no such folder"),
        ("a/b/c", "no such folder"),
        (r"C:\models\x", "no such folder"),
        ("C:/models", "not a name on the hub"),
        ("org/name@", "'' is not a revision"),
        ("org/name@../../x", "is not a revision"),
        ("org/na--me", "not a name on the hub"),
        ("org/name with spaces", "not a name on the hub"),
        ("org/" + "x" * 5000, "not a name on the hub"),
    ],
)
def test_malformed_references_are_one_line(reference: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        hub.resolve(reference, NO_SOURCES, weights=True)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="is a file: give the folder"):
        hub.resolve(str(tmp_path / "model.gguf"), NO_SOURCES, weights=True)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PEFTTOOL_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder.cache_folder() == tmp_path / ".cache" / "pefttool"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder.cache_folder() == tmp_path / "xdg" / "pefttool"
    monkeypatch.setenv("PEFTTOOL_CACHE", "~/own")
    assert cache_folder.cache_folder() == tmp_path / "own"


def test_importing_the_module_is_cheap() -> None:
    code = "import sys, pefttool.models.hub; print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "set()"


@pytest.mark.parametrize("name", ["weights.pt", "last.ckpt", "model.bin", "it's $(here).pth"])
def test_one_file_of_tensors_is_refused_with_the_command_that_converts_it(tmp_path: Path, name: str) -> None:
    """The file's name comes from somebody else: the shell must not read it."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / name).write_bytes(b"a pickle")
    with pytest.raises(ModelError) as caught:
        hub.resolve(str(tmp_path), NO_SOURCES, weights=True)
    command = str(caught.value).split("give the new folder: ")[1]
    assert command == model_folder.file_conversion_command(str(tmp_path), name)
    assert "weights_only=True" in command and shlex.split(command)[-1] == name
    assert shlex.split(command)[:3] == ["cd", str(tmp_path), "&&"]


def test_what_a_trainer_leaves_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
        (tmp_path / name).write_bytes(b"a pickle")
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        hub.resolve(str(tmp_path), NO_SOURCES, weights=True)


@pytest.mark.slow
def test_the_command_for_one_file_converts(tmp_path: Path) -> None:
    import torch

    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    torch.save({"state_dict": {"w": torch.ones(2, 3)}}, tmp_path / "last.ckpt")
    with pytest.raises(ModelError) as caught:
        hub.resolve(str(tmp_path), NO_SOURCES, weights=True)
    command = str(caught.value).split("give the new folder: ")[1]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True, capture_output=True)
    assert hub.resolve(str(tmp_path), NO_SOURCES, weights=True).path == tmp_path
