"""`pefttool check`: what is whole passes, in a clean process too, and every damage is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finished_runs import Runs
from safetensors.torch import load_file, save_file
from terminal import Terminal

from pefttool.api.errors import ModelError, RunError, UsageError
from pefttool.cli.run import report
from pefttool.config.registry import Registry
from pefttool.export import check as checking
from pefttool.export import clean_process, peft_versions
from pefttool.export.reload import Opening
from pefttool.run import Finished
from pefttool.runs import saved_files
from pefttool.setup import attach

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def runs(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(registry, tmp_path_factory.mktemp("checking"))


SLOW = ["lora", "dora", "lora-seq2seq", "full-classes", "prefix", "head", "lora-classes"]


@pytest.mark.parametrize("name", ["lora-nf4", "head-classes", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_a_clean_process_answers_alike(name: str, runs: Runs, registry: Registry) -> None:
    """Quantised bases, new heads in peft's files, and what has a loader of its own or is a whole model."""
    found = checking.check(runs[name], registry, Opening("cpu"), rows=3)
    assert isinstance(found.clean, checking.Agreement) and found.clean.relative < 1e-4
    assert found.effect.rows == 3 and found.effect.relative > 1e-3
    assert ("peft" in found.versions) == name.startswith(("lora", "dora", "prefix"))
    assert (found.since is not None) == name.startswith(("lora", "dora", "prefix"))
    assert bool(found.heads) == name.endswith("classes")


@pytest.mark.slow
def test_int8_is_coarser_without_us(runs: Runs, registry: Registry) -> None:
    """bitsandbytes rounds the inputs of its products, too: said, and allowed for."""
    found = checking.check(runs["lora-int8"], registry, Opening("cpu"), rows=3)
    assert isinstance(found.clean, checking.Agreement) and 1e-4 < found.clean.typical < 1e-2


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started: what is wrong has to be found before."""

    def started(source: str, folder: Path) -> Any:
        raise AssertionError("a process was started")

    monkeypatch.setattr(clean_process, "run", started)


def stored(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def configured(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


def truncated(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def renamed(folder: Path) -> None:
    stored(folder, lambda tensors: {n.replace("layer.0.attention", "layer.7.attention"): t for n, t in tensors.items()})


def without_one(folder: Path) -> None:
    stored(folder, lambda tensors: {n: t for n, t in tensors.items() if "layer.1.output.dense.lora_A" not in n})


def beheaded(folder: Path) -> None:
    stored(folder, lambda tensors: {n: t for n, t in tensors.items() if "classifier" not in n})


def zeroed(folder: Path) -> None:
    stored(folder, lambda tensors: {n: t * 0 if "lora_B" in n else t for n, t in tensors.items()})


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncated, r"adapter_model\.safetensors cannot be read .*restore the adapter folder"),
    "renamed": (renamed, r"lacks '.*layer\.0\.attention.*': copy the whole adapter folder again"),
    "without a key": (without_one, r"lacks '.*layer\.1\.output\.dense\.lora_A.*copy the whole"),
    "without its head": (beheaded, r"lacks the task head's 'classifier\..*copy the whole adapter folder"),
    "zeroed": (zeroed, r"changes nothing: on 5 rows the outputs are the base's; train again"),
    "of another base": (
        lambda folder: configured(folder, base_model_name_or_path="meta-llama/Llama-3.1-8B"),
        r"names the base 'meta-llama/Llama-3\.1-8B', and the adapter was trained on '.*': .*restore the file",
    ),
    "with a strange field": (
        lambda folder: configured(folder, use_tomorrows_lora=True),
        r"has the field 'use_tomorrows_lora', which peft .* does not know .*install the peft that wrote it",
    ),
    "of no known method": (
        lambda folder: configured(folder, peft_type="TOMORROW"),
        r"does not know peft_type 'TOMORROW'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.usefixtures("nobody")
def test_damage_is_found(damage: str, runs: Runs, registry: Registry, tmp_path: Path) -> None:
    spoil, words = DAMAGES[damage]
    run = runs.copy("lora-classes", tmp_path / "run")
    spoil(run / "adapter")
    with pytest.raises(ModelError, match=words) as raised:
        checking.check(run, registry, Opening("cpu"), rows=5)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("nobody")
def test_the_command_fails_with_one_line(runs: Runs, registry: Registry, terminal: Terminal, tmp_path: Path) -> None:
    terminal.allow(*(p.name for p in registry.plugins.loaded))
    run = runs.copy("lora-classes", tmp_path / "run")
    zeroed(run / "adapter")
    terminal.run("plugins")  # what the run printed is read
    code, out, err = terminal.run("check", str(run / "adapter"), "--rows", "2")
    assert (code, out, len(err)) == (1, "", 1) and "changes nothing" in err[0]
    code, _, err = terminal.run("check", str(tmp_path))
    assert code == 2 and "is no finished run" in err[0]


def test_the_command_says_what_it_found(runs: Runs, registry: Registry, terminal: Terminal) -> None:
    """A head of the task's own under lora: no library alone can build the model, and no process is started."""
    terminal.allow(*(p.name for p in registry.plugins.loaded))
    run = str(runs["lora-pooled"])
    terminal.run("plugins")  # what the run printed is read
    code, out, err = terminal.run("check", run)
    assert code == 0, err
    lines = out.splitlines()
    assert "all in their places, with the head classifier" in lines[0]
    assert lines[1].startswith("effect: changes the outputs by up to ") and "of the largest) on " in lines[1]
    assert lines[2].startswith("without pefttool: transformers and peft alone cannot build this model")
    assert lines[3].startswith("format: peft 0.14.0 and later take it; tested with ")
    assert ">=0.21" in lines[3]
    code, out, _ = terminal.run("check", str(runs["lora-pooled"] / "adapter"), "--json", "--rows", "1")
    found = json.loads(out)
    assert code == 0 and found["effect"] > 0 and found["clean_process"] is None and found["peft_since"] == "0.14.0"


def test_a_process_that_answers_otherwise_is_found(
    runs: Runs, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        clean_process,
        "run",
        lambda source, folder: clean_process.Clean(iter([{"logits": torch.zeros(1, 3)}]), {"peft": "0"}, ()),
    )
    with pytest.raises(ModelError, match="answers otherwise without pefttool: difference"):
        checking.check(runs["lora-classes"], registry, Opening("cpu"), rows=1)
    monkeypatch.setattr(
        clean_process,
        "run",
        lambda source, folder: clean_process.Clean(iter(()), {}, ("Found missing adapter keys: [a]",)),
    )
    with pytest.raises(ModelError, match="plain peft warns: Found missing adapter keys"):
        checking.check(runs["lora-classes"], registry, Opening("cpu"), rows=1)


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "calls.json").write_text("[]")
    with pytest.raises(ModelError, match="cannot be used without pefttool: ValueError: no such thing; restore"):
        clean_process.run("raise ValueError('no such thing')", tmp_path)


def test_rows_can_be_given_and_have_to_be_somewhere(runs: Runs, registry: Registry, tmp_path: Path) -> None:
    adapter = runs.copy("lora-pooled", tmp_path / "run") / "adapter"
    adapter.rename(tmp_path / "alone")
    with pytest.raises(UsageError, match="give --data FILE"):
        checking.check(tmp_path / "alone", registry, Opening("cpu"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a gem", "label": "no"}\n{"text": "two hours", "label": "yes"}\n')
    assert checking.check(tmp_path / "alone", registry, Opening("cpu", data=str(rows))).effect.rows == 2


LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


@pytest.mark.parametrize(
    ("fields", "first"),
    [
        ({}, "0.14.0"),
        ({"corda_config": None, "use_dora": True}, "0.14.0"),
        ({"trainable_token_indices": [1, 2]}, "0.15.0"),
        ({"trainable_token_indices": [1], "target_parameters": ["a"]}, "0.17.0"),
        ({"ensure_weight_tying": True}, "0.18.0"),
        ({"ensure_weight_tying": False}, "0.14.0"),
    ],
)
def test_the_first_peft_that_takes_a_config(fields: dict[str, Any], first: str) -> None:
    assert peft_versions.unknown({**LORA, **fields}) == []
    assert peft_versions.first({**LORA, **fields}) == first


def test_a_config_that_cannot_be_made_without_arguments() -> None:
    adalora = {"peft_type": "ADALORA", "total_step": 100, "init_r": 12}
    assert peft_versions.unknown({**adalora, "strange": 1}) == ["strange"]
    assert peft_versions.first(adalora) == "0.14.0"


def test_the_table_of_fields_is_of_the_installed_peft() -> None:
    """Every field of its LoRA has a version, or was there before 0.9; a new one has to be looked up."""
    from dataclasses import fields

    from pefttool.toolkit.peft_folder import load_peft

    old = {"alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode"}
    old |= {"init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout"}
    old |= {"megatron_config", "megatron_core", "modules_to_save", "peft_type", "r", "rank_pattern", "revision"}
    old |= {"target_modules", "task_type", "use_rslora", "use_dora", "layer_replication", "runtime_config"}
    old |= {"peft_version"}  # says who wrote it, and changes nothing
    found = {field.name for field in fields(load_peft().LoraConfig)}
    assert found - old - set(peft_versions.SINCE) == set()
    assert set(peft_versions.SINCE) - found == {"init_weights"}  # prefix tuning's


class Module(torch.nn.Module):
    def __init__(self, **parameters: torch.Tensor) -> None:
        super().__init__()
        for name, value in parameters.items():
            self.register_parameter(name, torch.nn.Parameter(value))


def adapted(**parameters: torch.Tensor) -> attach.Adapted:
    return attach.Adapted(
        Module(**parameters), tuple(n for n in parameters if n != "head"), ("head",) * ("head" in parameters), True
    )


def test_saved_files_hold_what_was_trained(tmp_path: Path) -> None:
    a, b, head = torch.randn(3, 4), torch.randn(5), torch.randn(2)
    save_file({"a": a, "both": torch.cat([b, torch.ones(1)]).view(2, 3), "head": head}, tmp_path / "x.safetensors")
    assert "every trained value, bit for bit (3 tensors)" in saved_files.check(tmp_path, adapted(a=a, b=b, head=head))
    with pytest.raises(RunError, match="holds other values for 'a'"):
        saved_files.check(tmp_path, adapted(a=a + 1e-7, b=b, head=head))
    other = saved_files.check(tmp_path, adapted(a=a, b=b + 1, head=head))
    assert "2 trained tensors are saved bit for bit, 1 in a form of the adapter's own" in other
    (tmp_path / CONFIG).write_text("{}")  # peft's layout has no form of its own
    with pytest.raises(RunError, match="lacks values of 1 trained tensors"):
        saved_files.check(tmp_path, adapted(a=a, b=b + 1, head=head))
    save_file({"a": a}, tmp_path / "x.safetensors")
    with pytest.raises(RunError, match="lacks the task head's 'head'"):
        saved_files.check(tmp_path, adapted(a=a, head=head))


@pytest.mark.parametrize("name", ["dora", "lora-classes", "lora-pooled", "head", "full-classes", "prefix"])
def test_every_run_says_that_its_files_are_whole(
    name: str, runs: Runs, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run itself, of every layout of files; and it ends with an error where they are not."""
    import finished_runs

    monkeypatch.setitem(finished_runs.FAST, "check", "files")
    fresh = Runs(registry, tmp_path)
    events = [json.loads(line) for line in (fresh[name] / "events.jsonl").read_text().splitlines()]
    said = [e["text"] for e in events if e["type"] == "Notice" and "saved adapter holds" in e["text"]]
    assert len(said) == 1 and "bit for bit" in said[0] and events[-1]["type"] == "RunFinished"


def test_a_run_whose_files_are_wrong_fails(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import finished_runs

    save = type(registry.adapters["lora"]).save

    def forgets(self: Any, model: Any, folder: Path) -> None:
        save(self, model, folder)
        stored(folder, lambda tensors: {n: t * 0 if "lora_B" in n else t for n, t in tensors.items()})

    monkeypatch.setitem(finished_runs.FAST, "check", "files")
    monkeypatch.setattr(type(registry.adapters["lora"]), "save", forgets)
    with pytest.raises(RunError, match=r"holds other values for .*lora_B.* than were trained"):
        Runs(registry, tmp_path)["lora"]
    assert (tmp_path / "runs" / "lora" / "metrics.json").is_file()


def test_a_loader_that_somebody_changed_is_not_run(
    runs: Runs, registry: Registry, tmp_path: Path, nobody: None
) -> None:
    """The folder of an adapter is data, its loader included."""
    run = Path(shutil.copytree(runs["head-classes"], tmp_path / "run"))
    loader = run / "adapter" / "load_head.py"
    loader.write_text(loader.read_text() + "\nimport os\n")
    with pytest.raises(ModelError, match=r"load_head\.py is not what pefttool writes .* is not run: restore the file"):
        checking.check(run, registry, Opening("cpu"), rows=3)


@pytest.mark.parametrize("met", [RunError("the answers differ"), KeyboardInterrupt()])
def test_what_a_run_brought_is_printed_whatever_the_check_meets(
    met: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], registry: Registry
) -> None:
    def check(*_: Any) -> None:
        raise met

    monkeypatch.setattr(checking, "after_run", check)
    folder = Path("runs/x")
    finished = Finished(folder, folder / "adapter", {"loss": 2.0}, {"loss": 1.0}, ())
    recipe: Any = SimpleNamespace(check="process")
    with pytest.raises(type(met)):
        report(finished, recipe, registry, False)
    assert "held-out loss: 2.0000 before, 1.0000 after" in capsys.readouterr().out


@pytest.mark.parametrize("met", [OSError(28, "No space left on device"), MemoryError(), RuntimeError("out of memory")])
def test_a_check_that_has_no_room_says_that_the_run_is_finished(
    met: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, registry: Registry
) -> None:
    def check(*_: Any) -> None:
        raise met

    monkeypatch.setattr(checking, "_after_run", check)
    recipe: Any = None
    with pytest.raises(RunError, match=rf"is finished, but .* make room, then `pefttool check {tmp_path}`"):
        checking.after_run(tmp_path, registry, recipe)
