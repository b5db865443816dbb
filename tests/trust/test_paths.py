"""Paths in files of others: none of them leads out of the folder that it may write to or read from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_hub import Client, FakeHub, client, fake, files
from safetensors.numpy import save_file

from pefttool import Adapter
from pefttool.api.errors import ModelError, RunError, UsageError
from pefttool.config import recipe as recipes
from pefttool.config import recipe_file
from pefttool.config.registry import NAME, Registry, _unfit
from pefttool.files import model_folder
from pefttool.models import hub
from pefttool.runs import checkpoint
from pefttool.toolkit import peft_folder

OUTSIDE = ["../x", "/etc/x", "a/../../x", "~/x", "..", "runs/../../../x"]


@pytest.mark.parametrize("out", OUTSIDE)
def test_a_recipe_writes_below_the_folder_it_runs_in(out: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"out: {out}\n")
    with pytest.raises(UsageError, match=r"leads out of the folder.*--out"):
        recipe_file.read(path)
    for inside in ("out", "runs/a", "./x", "a..b"):
        path.write_text(f"out: {inside}\n")
        assert recipe_file.read(path) == {"out": inside}


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/b", "a\\b", ".", "..", ".hidden", "-x", "a b", "a\n", "a\0", "ä", ""]
)
def test_names_of_adapters_are_no_paths(name: str) -> None:
    """The name of an adapter and of a task become the run folder's: `runs/ADAPTER-TASK-001`."""
    assert NAME.fullmatch(name) is None
    empty = dict.fromkeys(Adapter.__abstractmethods__, lambda self, *args, **kwargs: None)
    assert _unfit(type("Odd", (Adapter,), {**empty, "name": name})(), Adapter) is not None


def test_names_that_are_there_are_fine(registry: Registry) -> None:
    assert all(NAME.fullmatch(name) for kind in registry.kinds.values() for name in kind)


@pytest.mark.parametrize("shard", ["../m.safetensors", "/m.safetensors", "a/m.safetensors", "a\\m.safetensors", ".."])
def test_an_index_names_files_of_its_folder(shard: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "m.safetensors")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(ModelError, match="of the same folder"):
        model_folder.check_folder(folder, "'m'")


def test_a_repository_whose_files_have_paths_writes_nothing_outside(client: Client, fake: FakeHub) -> None:
    """The hub would not list such files; a mirror of it may."""
    for name in ("../escaped.json", "../../../escaped.json", "/escaped.json", "additional_chat_templates/../e.jinja"):
        fake.files[name] = b"{}"
    found = client.run()
    assert found.error is None
    assert not [path for path in client.cache.parent.parent.rglob("*escaped*")]
    assert not [path for path in client.cache.parent.parent.rglob("e.jinja")]
    assert not any("escaped" in path or ".." in path for path in fake.paths)


def test_revisions_are_no_paths() -> None:
    assert not [revision for revision in OUTSIDE if hub.REVISION.fullmatch(revision)]
    assert all(hub.REVISION.fullmatch(revision) for revision in ("main", "v1.0", "refs/pr/1", "0123abc"))


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", "a/b", "a\\b"])
def test_a_manifest_names_files_of_its_checkpoint(name: str, tmp_path: Path) -> None:
    import hashlib

    folder = tmp_path / "step-1"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / checkpoint.MANIFEST).write_text(json.dumps({name: hashlib.sha256(b"secret").hexdigest()}))
    mark = hashlib.sha256((folder / checkpoint.MANIFEST).read_bytes()).hexdigest()
    (folder / checkpoint.COMPLETE).write_text(mark)
    with pytest.raises(RunError, match=r"step-1"):
        checkpoint.verify(folder)


def test_an_adapters_config_names_no_module(tmp_path: Path) -> None:
    """peft imports what `megatron_core` names, wherever Python finds it: in the current folder, say."""
    config = {"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": "evil"}
    (tmp_path / peft_folder.CONFIG).write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"'megatron_config'.*which is not done: remove it"):
        peft_folder.read_config(tmp_path)
