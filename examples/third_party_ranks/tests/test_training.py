"""What the adapter promises beside the contract: where it begins, what it drops, and that a resumed run is the same."""

import json

import pytest
import torch
from pefttool_ranks import FASTER, FILE, Ranks, RanksOptions
from safetensors.torch import load_file

from pefttool import Facts
from pefttool.testing import ContractViolation, check_resume, installed, tiny_encoder

STEPS, DROP_AFTER = 6, 3


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A small run that drops directions in the middle, and is evaluated after every step."""
    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path / "cache"))
    words = {"good": "yes great fine", "bad": "no poor awful"}
    rows = [{"text": f"{text} number {i}", "label": label} for i in range(8) for label, text in words.items()]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "model").mkdir()
    return {
        "model": str(tiny_encoder(tmp_path / "model")),
        "task": "text-classification",
        "adapter": {"name": "ranks", "rank": 4, "drop_after": DROP_AFTER},
        "device": "cpu",
        "dtype": "float32",
        "data": {"train": str(data), "eval": str(data), "allow_overlap": True},
        "train": {"batch_size": 4, "max_steps": STEPS, "evaluate_every": 1, "sequence_length": 32},
        "check": "files",
    }


@pytest.mark.parametrize("at", [DROP_AFTER - 1, DROP_AFTER + 1])
def test_a_resumed_run_ends_with_the_same_bits(recipe, tmp_path, at):
    check_resume(installed(), recipe, tmp_path, at, "adapter 'ranks'")


def test_without_the_training_state_it_would_not(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Ranks, "restore_training_state", lambda self, model, state: None)
    with pytest.raises(ContractViolation, match="resumed after step"):
        check_resume(installed(), recipe, tmp_path, DROP_AFTER + 1, "adapter 'ranks'")


def test_half_of_the_directions_are_dropped_and_none_of_the_layers(recipe, tmp_path):
    recipe["train"]["keep_best"] = False  # the last step's is delivered
    check_resume(installed(), recipe, tmp_path, 1, "adapter 'ranks'")
    tensors = load_file(tmp_path / "whole" / "adapter" / FILE)
    scales = [tensor for name, tensor in tensors.items() if name.endswith(".scale")]
    kept = [int((scale != 0).sum()) for scale in scales]
    assert all(kept) and sum(kept) == pytest.approx(sum(map(len, scales)) / 2, abs=len(scales))
    assert len(set(kept)) > 1  # some layers need more than others


def attached(**options):
    model = torch.nn.Sequential(torch.nn.Linear(6, 5))
    Ranks().attach(model, RanksOptions(**options), Facts("Tiny", linear_modules=("0",)))
    return model


def test_it_begins_in_the_directions_of_the_inputs():
    model = attached(rank=2)
    inputs = torch.randn(40, 2) @ torch.linalg.qr(torch.randn(6, 2)).Q.T  # of two dimensions out of six
    Ranks().prepare(model, (model(inputs).sum() for _ in range(4)))
    down = model[0].ranks.down
    assert torch.allclose(inputs @ down.T @ down, inputs, atol=1e-5)
    assert torch.equal(model(inputs), torch.nn.functional.linear(inputs, model[0].weight, model[0].bias))


def test_no_more_batches_are_asked_for_than_are_looked_at():
    asked = []
    model = attached(rank=2)
    Ranks().prepare(model, (asked.append(i) or model(torch.randn(9, 6)).sum() for i in range(9)))
    assert len(asked) == 2 and model[0].ranks.looking is None


def test_scales_learn_faster():
    model = attached(rank=2)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    directions, scales = Ranks().param_groups(model, names, 1e-3)
    assert scales["lr"] == FASTER * directions["lr"] and [tuple(p.shape) for p in scales["params"]] == [(2,)]
