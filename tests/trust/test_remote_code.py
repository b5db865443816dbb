"""Code that comes with a model: it runs for who named the model and the revision of its code, and else never."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_hub import COMMIT, REPOSITORY, Client, FakeHub, client, fake, files

from pefttool.api.errors import ModelError
from pefttool.cli import entry
from pefttool.config.registry import Registry
from pefttool.models import hub, remote_code

#: It tells of having run through the environment.
CODE = """
import os
os.environ["ACME_RAN"] = "yes"
from transformers import BertConfig, BertForSequenceClassification
class AcmeConfig(BertConfig):
    model_type = "acme-x"
class AcmeForSequenceClassification(BertForSequenceClassification):
    config_class = AcmeConfig
"""
CLASSES = {
    "AutoConfig": "modeling_acme.AcmeConfig",
    "AutoModelForSequenceClassification": "modeling_acme.AcmeForSequenceClassification",
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny encoder whose classes are its own."""
    import transformers.dynamic_module_utils

    from pefttool.testing.models import model_folder

    folder = Path(shutil.copytree(model_folder("encoder"), tmp_path / "acme"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "acme-x", "auto_map": CLASSES}))
    (folder / "modeling_acme.py").write_text(CODE)
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("ACME_RAN", "no")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return folder


def local(folder: Path) -> hub.LocalModel:
    return hub.LocalModel(folder, str(folder))


def test_it_is_refused_with_what_to_type(model: Path, registry: Registry) -> None:
    with pytest.raises(ModelError) as refused:
        remote_code.allowed(local(model), None, registry)
    wanted = f"--trust-remote-code {model}@{remote_code.fingerprint(model)}"
    assert str(refused.value).endswith(f"read that code, and if you trust it, add {wanted}")
    assert "'acme-x'" in str(refused.value) and "\n" not in str(refused.value)
    assert os.environ["ACME_RAN"] == "no"


def test_a_model_that_transformers_knows_needs_none(model: Path, registry: Registry) -> None:
    """Its own code is not run all the same: transformers' class is."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    assert not remote_code.allowed(local(model), None, registry)
    from pefttool.models.pretrained import LocalPretrained

    assert type(LocalPretrained(model).config).__name__ == "BertConfig"
    assert os.environ["ACME_RAN"] == "no"


def test_only_this_model_at_this_revision(model: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = remote_code.fingerprint(model)
    wrong = ["", "acme", f"{model}", f"{model}@", f"{model}@main", f"{model}x@{revision}", f"@{revision}"]
    for trusted in (*wrong, f"{model}@{revision[:12]}", f"other/name@{revision}"):
        with pytest.raises(ModelError, match="give exactly that"):
            remote_code.allowed(local(model), trusted, registry)
    assert remote_code.allowed(local(model), f"{model}@{revision}", registry)
    monkeypatch.chdir(model.parent)
    assert remote_code.allowed(local(model), f"./acme@{revision}", registry)
    (model / "modeling_acme.py").write_text(CODE + "\n# changed since it was read\n")
    with pytest.raises(ModelError, match="give exactly that"):
        remote_code.allowed(local(model), f"{model}@{revision}", registry)
    (model / "modeling_acme.py").write_text(CODE)
    (model / "more").mkdir()
    (model / "more" / "helper.py").write_text("")  # imported by nobody yet
    assert remote_code.fingerprint(model) != revision


def test_code_of_another_repository_is_never_run(model: Path, registry: Registry) -> None:
    for file, name in (("config.json", "AutoModel"), ("tokenizer_config.json", "AutoTokenizer")):
        path = model / file
        before = path.read_text()
        path.write_text(json.dumps({**json.loads(before), "auto_map": {name: ["other/one--code.Class", None]}}))
        with pytest.raises(ModelError, match="another repository, 'other/one'"):
            remote_code.allowed(local(model), remote_code.reference(local(model)), registry)
        path.write_text(before)


def test_a_tokenizer_of_its_own_is_refused(model: Path, registry: Registry) -> None:
    shutil.copy(model / "config.json", model / "own.json")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "bert", "auto_map": None}))
    (model / "tokenizer.json").unlink()
    tokenizer = {"tokenizer_class": "AcmeTokenizer", "auto_map": {"AutoTokenizer": ["tok.AcmeTokenizer", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"tokenizer_config\.json names code of its own.*--trust-remote-code"):
        remote_code.allowed(local(model), None, registry)


def test_trust_in_what_has_no_code_is_refused(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"has no code of its own: drop the flag"):
        remote_code.allowed(local(tmp_path), "acme/x@abc", registry)


def test_code_of_the_hub_is_fetched_only_for_who_trusts_it(client: Client, fake: FakeHub) -> None:
    """The reference is the commit: the code that was read is the code that runs."""
    client.run()
    assert not any(path.endswith(".py") for path in fake.paths)
    found = client.run(f"{REPOSITORY}@{COMMIT}", "code")
    assert found.error is None and fake.paths[-1].endswith("/modeling.py")
    assert (Path(found.path) / "modeling.py").read_bytes() == fake.files["modeling.py"]
    assert remote_code.reference(hub.LocalModel(Path(found.path), REPOSITORY, COMMIT)) == f"{REPOSITORY}@{COMMIT}"


def run(model: Path, data: Path, *more: str) -> list[str]:
    given = ["--adapter", "lora", "--model", str(model), "--data", str(data), "--task", "text-classification"]
    options = (
        "train.max_steps=1",
        "train.rehearse=false",
        "data.cache=false",
        "device=cpu",
        "train.sequence_length=16",
    )
    return ["run", *given, *(part for one in options for part in ("-o", one)), "--out", str(data.parent / "out"), *more]


def test_whole_runs(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused, then trusted on the command line; the finished run asks again, for its folder may be somebody else's."""
    data = tmp_path / "rows.jsonl"
    rows: list[dict[str, Any]] = [{"text": t, "label": label} for t, label in zip("abcdefgh", "xyxyxyxy", strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert entry.execute(run(model, data)) == 1
    flag = capsys.readouterr().err.strip().rpartition("add ")[2].split()
    assert flag[0] == "--trust-remote-code" and os.environ["ACME_RAN"] == "no"
    assert not (tmp_path / "out").exists()

    assert entry.execute(run(model, data, *flag)) == 0, capsys.readouterr().err
    assert os.environ["ACME_RAN"] == "yes"
    assert "comes with Python code, which runs" in (tmp_path / "out" / "events.jsonl").read_text()
    assert flag[1] in (tmp_path / "out" / "recipe.yaml").read_text()

    capsys.readouterr()
    predict = ["predict", str(tmp_path / "out"), "--text", "a"]
    assert entry.execute(predict) == 1
    assert " ".join(flag) in capsys.readouterr().err
    assert entry.execute([*predict, *flag]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["label"] in ("x", "y")
