"""Nothing stale: the keys of encoded rows and of features cover whatever their bytes depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import frozen_runs as runs
import pytest
import torch

from pefttool.config import recipe
from pefttool.config.registry import Registry
from pefttool.data import corpus, encoding
from pefttool.files import fingerprint
from pefttool.files.store import Store
from pefttool.inference import features, frozen
from pefttool.setup import attach, base, plan, techniques
from pefttool.setup.prepared import Prepared

CLASSIFY = "text-classification"


class Keys:
    """The keys under which one run would look for its files: of rows, and of features."""

    def __init__(self, registry: Registry, model: Path, rows: Path) -> None:
        self.registry, self.model, self.rows = registry, model, rows

    def __call__(self, adapter: str = "head", **options: Any) -> tuple[str | None, str | None]:
        document: dict[str, Any] = {
            "model": str(self.model),
            "adapter": {"name": adapter},
            "task": {"name": CLASSIFY},
            "data": {"train": str(self.rows), "eval_fraction": 0.3},
            "train": {"sequence_length": 96},
            "device": "cpu",
            "dtype": "float32",
        }
        for key, value in options.items():
            section, _, leaf = key.rpartition("__")
            (document.setdefault(section, {}) if section else document)[leaf] = value
        planned = plan.make(recipe.resolve(document, self.registry), self.registry)
        read = corpus.load(planned.recipe, self.registry)
        loaded = base.load(planned, read.labels)
        key = encoding.rows_key(
            planned.task, planned.registry, planned.model.path, loaded.processor, loaded.setting, read.train
        )
        data = encoding.encode(
            read.train, planned.task, loaded.processor, loaded.setting, kept=encoding.Cached(key=key)
        )
        adapted = attach.attach(loaded.model, planned.adapter, planned.recipe.adapter_options, loaded.facts)
        techniques.apply(planned, adapted)
        found = frozen.find(planned, loaded, adapted, data)
        assert found.frontier is not None
        silent: Any = None
        prepared = Prepared(planned, loaded, adapted, encoding.Examples(data, data))
        maker = features._Maker(prepared, found.frontier, Store(Path("/nowhere"), print), silent)
        try:
            return key, maker.key(data, (len(data.examples), *found.frontier.shape))
        except fingerprint.Unknowable:
            return key, None


@pytest.fixture
def keys(registry: Registry, tmp_path: Path) -> Keys:
    return Keys(registry, runs.store_model("bert", tmp_path / "model"), runs.write_rows(tmp_path, CLASSIFY))


def test_the_same_run_has_the_same_keys_and_a_seed_of_the_head_changes_none(keys: Keys) -> None:
    first = keys()
    assert None not in first and keys() == first
    assert keys(train__learning_rate=0.5, train__epochs=9, train__batch_size=2) == first


@pytest.mark.parametrize(
    ("options", "of_rows"),
    [
        ({"train__sequence_length": 24}, True),
        ({"train__seed": 5}, True),  # it splits the rows
        ({"task__text_column": "text"}, True),
        ({"dtype": "bfloat16"}, False),
        ({"quantize": "nf4"}, False),
        ({"quantize": "int8", "dtype": "bfloat16"}, False),
        ({"adapter__train_last_layers": 1}, False),
        ({"adapter__train_last_layers": 2}, False),
    ],
    ids=str,
)
def test_every_option_that_matters_changes_the_keys(keys: Keys, options: dict[str, Any], of_rows: bool) -> None:
    before, after = keys(), keys(**options)
    assert None not in after and after[1] != before[1]
    assert (after[0] != before[0]) == of_rows


@pytest.mark.parametrize("options", [{"double_quant": False}, {"backend": "bitsandbytes"}], ids=str)
def test_the_quantizers_options_change_the_features_key(keys: Keys, options: dict[str, Any]) -> None:
    before = keys(quantize="nf4")
    assert keys(quantize={"name": "nf4", "backend": "auto", "double_quant": True}) == before
    after = keys(quantize={"name": "nf4", **options})
    assert after[0] == before[0] and after[1] != before[1]


def edit_data(keys: Keys) -> None:
    rows = [json.loads(line) for line in keys.rows.read_text().splitlines()]
    rows[3]["text"] += " indeed"
    keys.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit_label(keys: Keys) -> None:
    keys.rows.write_text(keys.rows.read_text().replace('"so"', '"meh"'))


def edit_tokenizer(keys: Keys) -> None:
    path = keys.model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "left"}))


def edit_vocabulary(keys: Keys) -> None:
    path = keys.model / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("edit", [edit_data, edit_label, edit_tokenizer, edit_vocabulary])
def test_other_data_and_another_tokenizer_change_both_keys(keys: Keys, edit: Any) -> None:
    before = keys()
    edit(keys)
    assert all(a != b for a, b in zip(keys(), before, strict=True))


def test_other_weights_change_the_features_key(keys: Keys) -> None:
    before = keys()
    path = keys.model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the lowest bits of one number
    path.write_bytes(content)
    after = keys()
    assert after[0] == before[0] and after[1] != before[1]


def test_other_settings_of_the_model_change_both_keys(keys: Keys) -> None:
    before = keys()
    path = keys.model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "relu"}))
    assert all(a != b for a, b in zip(keys(), before, strict=True))


@pytest.mark.parametrize("library", ["torch", "transformers", "tokenizers"])
def test_another_version_of_a_library_changes_both_keys(
    keys: Keys, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    before, version = keys(), fingerprint._version
    monkeypatch.setattr(fingerprint, "_version", lambda name: "99" if name == library else version(name))
    assert all(a != b for a, b in zip(keys(), before, strict=True))


@pytest.mark.parametrize("package", ["pefttool", "pefttool_text"])
def test_other_code_changes_both_keys(keys: Keys, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    before, sources = keys(), fingerprint._sources
    monkeypatch.setattr(fingerprint, "_sources", lambda name: "edited" if name == package else sources(name))
    assert all(a != b for a, b in zip(keys(), before, strict=True))


@pytest.mark.parametrize("package", ["pefttool_head", "pefttool_bnb", "pefttool_kernels"])
def test_other_code_of_who_made_the_model_changes_the_features_key(
    keys: Keys, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    before, sources = keys(quantize="nf4"), fingerprint._sources
    monkeypatch.setattr(fingerprint, "_sources", lambda name: "edited" if name == package else sources(name))
    after = keys(quantize="nf4")
    assert after[0] == before[0] and after[1] != before[1]


def test_another_device_changes_the_features_key(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    after = keys()
    assert after[0] == before[0] and after[1] != before[1]


def test_what_cannot_be_known_has_no_key(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(keys.registry.tasks[CLASSIFY]), "repeatable", False)
    assert keys() == (None, None)


def test_sources_are_the_files_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "somebodys"
    (package / "inside").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inside" / "task.py").write_text("class Task: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    from somebodys.inside.task import Task  # type: ignore[import-not-found]

    before = fingerprint.code([Task()])
    (package / "inside" / "task.py").write_text("class Task: changed = True\n")
    after = fingerprint.code([Task()])
    assert before["somebodys"] != after["somebodys"] and before["pefttool"] == after["pefttool"]
    with pytest.raises(fingerprint.Unknowable):
        fingerprint.key(value=object())
