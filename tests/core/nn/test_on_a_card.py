"""What only a card does: copies that arrive late, no float64, generators of its own. None is needed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from on_card import LATE, OnCuda, OnMps, Pinned
from tiny_models import batch, configs
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pefttool import Loss, Setting
from pefttool.inference import evaluate, out_of_memory, predictor, reference_model
from pefttool.nn import attention, embedding_offload, placement
from pefttool.nn.embedding_offload import LookedUp
from pefttool.setup import random_state
from pefttool.setup.devices import Choice
from pefttool.toolkit import random_numbers
from pefttool_audio import ctc
from pefttool_text import packed

CPU = Choice("cpu", "float32", None, False, "")


# Ids that are looked up in host memory.


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty_like(tensor: Tensor, device: str, pin_memory: bool) -> Tensor:
        assert device == "cpu" and pin_memory
        return torch.full(tensor.shape, LATE).as_subclass(Pinned)

    monkeypatch.setattr(torch, "empty_like", empty_like)


def test_a_copy_that_is_not_waited_for_arrives_late(pinned):
    copy = placement.on_host(torch.tensor([3, 1]).as_subclass(OnCuda))
    assert isinstance(copy, Pinned) and copy.tolist() == [LATE, LATE]
    copy.arrive()
    assert copy.tolist() == [3, 1]


def test_rows_are_looked_up_by_ids_that_have_arrived(pinned, monkeypatch):
    monkeypatch.setattr(placement, "on_device", lambda tensor, device: (tensor, device))
    table = nn.Embedding(5, 2)
    expected = table(torch.tensor([[3, 1, 2]]))
    table.__class__ = type("Rows", (LookedUp, nn.Embedding), {})
    rows, device = table(torch.tensor([[3, 1, 2]]).as_subclass(OnCuda))
    assert torch.equal(rows, expected) and device == torch.device("cuda", 0)


# Where a model computes whose first parameters are in host memory.


def generating() -> Any:
    """A model whose embedding and output layer lie in host memory, and all the rest on another device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configs()["llama"])
    embedding_offload.install(model)
    model.model.embed_tokens.weight = model.lm_head.weight = nn.Parameter(torch.zeros(101, 32))
    return model


def test_what_is_generated_from_stays_where_the_model_computes():
    model = generating()
    assert next(model.parameters()).device.type == "cpu"
    assert model.device.type == model.model.device.type == "meta"
    ids = batch()["input_ids"].to("meta")
    given = model.prepare_inputs_for_generation(ids, attention_mask=torch.ones_like(ids), use_cache=False)
    assert {name: value.device.type for name, value in given.items() if isinstance(value, Tensor)} == {
        "input_ids": "meta",
        "attention_mask": "meta",
        **({"position_ids": "meta"} if "position_ids" in given else {}),
    }


def test_a_model_with_tables_on_the_host_keeps_its_name():
    kind = type(generating())
    assert (kind.__name__, kind.__module__) == ("LlamaForCausalLM", "transformers.models.llama.modeling_llama")


# Apple's GPUs have no float64.


class Toy:
    """Of a task what is asked here: squares; of the base, the mean of a row."""

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        return Loss(model(batch["x"]).square().sum(), torch.tensor(float(len(batch["x"]))))

    def prepare(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> dict[str, Tensor]:
        return {"mean": model(batch["x"]).mean(1)}


TOY: Any = Toy()


class Predictor(predictor.Predictor):
    """Its batches lie on the pretended GPU."""

    def batch(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"x": torch.stack([example["x"] for example in examples]).as_subclass(OnMps)}


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(3, generator=generator), "length": 1} for _ in range(5)]


def test_the_pretended_gpu_refuses_float64():
    with pytest.raises(TypeError, match="MPS"):
        torch.ones(2).as_subclass(OnMps).double()
    assert torch.ones(2).as_subclass(OnMps).cpu().double().dtype == torch.float64


def test_an_evaluation_needs_no_float64(rows):
    model = nn.Linear(3, 2)
    loss, _ = evaluate.forward(Predictor(model, TOY, None, Setting(None), CPU), rows, [[0, 1], [2, 3, 4]])
    expected = model(torch.stack([row["x"] for row in rows])).square().sum() / 5
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)


def test_what_the_base_is_asked_needs_no_float64(rows):
    model = nn.Linear(3, 2)
    found = reference_model.ask(Predictor(model, TOY, None, Setting(None), CPU), rows, batch_size=2)
    assert found["mean"].dtype == torch.float64
    torch.testing.assert_close(found["mean"].float(), model(torch.stack([row["x"] for row in rows])).mean(1))


def test_rows_are_proved_apart_without_float64(monkeypatch):
    model = AutoModelForCausalLM.from_config(configs()["llama"]).eval()
    logits = packed._logits
    monkeypatch.setattr(packed, "_logits", lambda *arguments: logits(*arguments).as_subclass(OnMps))
    with torch.no_grad():
        assert packed.check(model, [{"input_ids": [1, 5, 7, 9]}, {"input_ids": [1, 6, 8]}]) is None


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Apple's generator: a state that draws change."""
    held = SimpleNamespace(state=torch.tensor([1], dtype=torch.uint8))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device="mps": held.state.clone())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, device="mps": setattr(held, "state", state.clone()))
    return held


def test_the_state_of_apples_generator_is_stored_and_put_back(mps):
    text = random_state.capture()
    mps.state += 6
    random_state.restore(text)
    assert mps.state.tolist() == [1]
    random_state.restore(text.replace('"mps"', '"older"'))


def test_a_step_that_is_tried_again_draws_the_same_from_apples_generator(mps):
    before = random_state.RandomState("mps")
    mps.state += 6
    before.restore()
    assert mps.state.tolist() == [1]


@pytest.mark.parametrize(("device", "found"), [("mps", [1]), ("cpu", [7])])
def test_an_evaluation_leaves_apples_generator_as_it_was(mps, device, found):
    with random_numbers.forked(device):
        mps.state += 6
    assert mps.state.tolist() == found


def test_a_rank_protects_the_generator_of_its_own_card(monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: asked.append(device) or torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: asked.append(device))
    for device in ("cuda", "cuda:1", "cuda:0"):
        with random_numbers.forked(device):
            pass
    assert asked == [3, 3, 1, 1, 0, 0]


def test_the_ctc_loss_of_apples_gpu_is_computed_on_the_cpu(caplog, monkeypatch):
    class Mps(Tensor):
        device = property(lambda self: torch.device("mps"))  # type: ignore[assignment]

        def cpu(self) -> Tensor:  # type: ignore[override]
            return self.as_subclass(Tensor)

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(9, 2, 5, generator=generator).log_softmax(-1)
    labels, frames, counts = torch.tensor([1, 2, 3, 1]), torch.tensor([9, 7]), torch.tensor([3, 1])
    expected = nn.functional.ctc_loss(scores, labels, frames, counts, blank=0, reduction="sum")
    moved: list[Any] = []
    monkeypatch.setattr(Tensor, "to", lambda self, device: moved.append(device) or self)
    ctc._tell_of_the_cpu.cache_clear()
    found = ctc._ctc_loss(scores.as_subclass(Mps), labels.as_subclass(Mps), frames, counts.as_subclass(Mps), 0)
    assert type(found) is Tensor and torch.equal(found, expected) and moved == [torch.device("mps")]
    assert "the CPU computes it" in caplog.text


# Packed rows on a card.


def test_the_backward_pass_of_packed_rows_fills_no_gradient_for_each_row():
    """One node cuts all rows; of slices there would be one a row, each as long as all of them."""
    query = torch.randn(1, 2, 12, 4, requires_grad=True)
    with placement.pretending("cuda", lambda tensor: None):
        output, _ = attention.attention(nn.Identity(), query, query, query, None, is_causal=True, segments=(5, 4, 3))
    seen, waiting = [], [output.grad_fn]
    while waiting:
        node = waiting.pop()
        seen.append(type(node).__name__)
        waiting += [following for following, _ in node.next_functions if following is not None]
    assert "SplitWithSizesBackward0" in seen and not any(name.startswith("Slice") for name in seen)
