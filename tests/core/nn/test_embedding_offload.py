"""Embeddings and output layer in host memory: the same answers, the same gradients, and where it counts what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import batch, configs, load_base, logits, store
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pefttool import ModelError
from pefttool.nn import embedding_offload, placement
from pefttool.nn.embedding_offload import LookedUp, SlicedLinear


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return store(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of 30 rows: 101 of them are three and a part of a fourth."""
    monkeypatch.setattr(embedding_offload, "SLICE", 30)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_outputs_are_the_same(models, kind):
    model = load_base(models, kind)
    before = logits(model)
    embedding_offload.install(model)
    assert isinstance(model.get_input_embeddings(), LookedUp)
    torch.testing.assert_close(logits(model), before, rtol=1e-6, atol=1e-6)


def test_what_is_tied_stays_tied(models):
    model = load_base(models, "llama")
    embedding_offload.install(model)
    assert type(model.lm_head) is SlicedLinear
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {id(p) for p in embedding_offload.parameters(model)} == {id(model.lm_head.weight)}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_sliced_layer_is_a_linear_one(with_bias, autocast):
    torch.manual_seed(0)
    plain = nn.Linear(16, 101, bias=with_bias).requires_grad_(False)
    x = torch.randn(2, 5, 16, requires_grad=True)
    upstream = torch.randn(2, 5, 101)
    found = []
    for kind in (nn.Linear, SlicedLinear):
        plain.__class__ = kind
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = plain(x)
        gradient = torch.autograd.grad(output, x, upstream.to(output.dtype))[0]
        found.append((output, gradient))
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if autocast else {"rtol": 1e-5, "atol": 1e-5}
    for theirs, ours in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_nothing_is_moved_for_no_rows(monkeypatch):
    layer = nn.Linear(16, 101).requires_grad_(False)
    layer.__class__ = SlicedLinear
    monkeypatch.setattr(placement, "on_device", lambda *arguments: pytest.fail("moved"))
    assert layer(torch.randn(2, 0, 16)).shape == (2, 0, 101)


def test_on_a_pretended_card_one_slice_is_there_at_a_time():
    """What was told to lie in host memory, and what was copied from there."""
    on_host: list[Tensor] = []
    layer = nn.Linear(16, 101).requires_grad_(False)
    layer.__class__ = SlicedLinear
    rows = nn.Embedding(101, 16)
    rows.__class__ = type("Rows", (LookedUp, nn.Embedding), {})
    ids = torch.tensor([[1, 2]])
    with placement.pretending("cuda", on_host.append):
        found = rows(ids)
        assert [tensor.shape for tensor in on_host] == [ids.shape, found.shape]
        assert found.data_ptr() != on_host[1].data_ptr() and torch.equal(found, on_host[1])
        parts = [part for _, part in embedding_offload._slices(layer.weight, found)]
    assert [len(part) for part in parts] == [30, 30, 30, 11]
    assert not {part.untyped_storage().data_ptr() for part in parts} & {layer.weight.untyped_storage().data_ptr()}


def test_a_scaled_embedding_stays_scaled():
    class Scaled(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * 3

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = Scaled(5, 2)

        def get_input_embeddings(self) -> nn.Module:
            return self.rows

    model = Model()
    before = model.rows(torch.arange(5))
    embedding_offload.install(model)
    assert torch.equal(model.rows(torch.arange(5)), before)


def test_another_kind_of_output_layer_is_refused():
    class Model(nn.Module):
        def get_output_embeddings(self) -> nn.Module:
            return nn.Conv1d(1, 1, 1)

    with pytest.raises(ModelError, match="the Conv1d of Model cannot be kept in host memory; drop embeddings"):
        embedding_offload.install(Model())


def test_the_device_is_that_of_the_rest():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configs()["llama"])
    assert embedding_offload.device_of(model).type == "meta"
    embedding_offload.install(model)
    model.model.embed_tokens.weight = model.lm_head.weight = nn.Parameter(torch.zeros(101, 32))
    assert next(model.parameters()).device.type == "cpu"
    assert embedding_offload.device_of(model).type == "meta"
    assert batch()["input_ids"].device.type == "cpu"
