"""Packed rows: the loss and every gradient of padded ones, for every kind of attention; who cannot pack, and why."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models as tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pefttool import Setting
from pefttool.nn import attention
from pefttool_full.adapter import FullAdapter
from pefttool_full.options import FullOptions
from pefttool_lora.adapter import LoraAdapter
from pefttool_lora.options import LoraOptions
from pefttool_prefix.adapter import PrefixAdapter
from pefttool_prefix.options import PrefixOptions
from pefttool_text import packed
from pefttool_text.batching import IGNORE
from pefttool_text.causal_lm import CausalLM
from pefttool_text.chat import Chat

SMALL = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 4
#: Grouped heads, one head for all, full heads; learned positions; a sliding window in every other layer.
DECODERS: dict[str, Any] = {
    "llama-grouped": transformers.LlamaConfig(**SMALL, num_key_value_heads=2),
    "llama-one": transformers.LlamaConfig(**SMALL, num_key_value_heads=1),
    "llama-full": transformers.LlamaConfig(**SMALL, num_key_value_heads=4),
    "gpt2": transformers.GPT2Config(
        vocab_size=tiny.VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "qwen2-window": transformers.Qwen2Config(
        **SMALL, num_key_value_heads=2, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "opt": transformers.OPTConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
}
#: How rows are attended to: whole probabilities (a CPU), and PyTorch's own attention per row (elsewhere).
PATHS = {"whole": attention.WHOLE, "fused": 0}
PADDED, PACKED = (Setting(CausalLM.Options(), packing=packing) for packing in (False, True))


class Tokenizer:
    pad_token_id = 0
    eos_token_id = 2


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    config = DECODERS[kind]
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "dropout", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return model.train()


@st.composite
def examples(draw: st.DrawFn, longest: int = 21) -> list[dict[str, Any]]:
    """Rows of odd lengths, down to one token, some of their labels hidden as a prompt's are."""
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        ids = draw(st.lists(st.integers(3, tiny.VOCABULARY - 1), min_size=1, max_size=longest))
        hidden = draw(st.integers(0, len(ids) - 1))
        labels = [IGNORE] * max(1, hidden) + ids[max(1, hidden) :]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def differences(model: Any, rows: list[dict[str, Any]], task: Any = CausalLM()) -> tuple[float, float]:  # noqa: B008
    """(loss, gradients): the largest differences between packed and padded; gradients relative to the largest one."""
    results = []
    for setting in (PADDED, PACKED):
        loss = task.loss(model, task.collate(rows, Tokenizer(), setting), setting)
        model.zero_grad()
        if loss.sum.requires_grad:
            (loss.sum / max(1, int(loss.weight))).backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((float(loss.sum.detach()), float(loss.weight), grads))
    (a, units, first), (b, same_units, second) = results
    assert units == same_units and first.keys() == second.keys()
    largest = max((float(g.norm()) for g in first.values()), default=0.0)
    worst = max((float((first[n] - second[n]).norm()) for n in first), default=0.0)
    return abs(a - b) / max(1.0, abs(a)), worst / largest if largest else worst


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", DECODERS)
def test_packed_rows_have_the_loss_and_every_gradient_of_padded_ones(kind, path, monkeypatch):
    monkeypatch.setattr(attention, "WHOLE", PATHS[path])
    model = model_of(kind)
    assert attention.install(model) is None

    @settings(max_examples=15, deadline=None)
    @given(examples())
    def holds(rows):
        loss, gradients = differences(model, rows)
        assert loss <= 1e-5 and gradients <= 1e-5

    holds()


ADAPTERS = {
    "lora": (LoraAdapter(), LoraOptions(r=4)),
    "full": (FullAdapter(), FullOptions()),
    "prefix": (PrefixAdapter(), PrefixOptions(implementation="attention", num_virtual_tokens=3)),
}


#: To the function all adapters are alike but those with keys of their own.
CASES = [(adapter, "llama-grouped", "whole") for adapter in ADAPTERS]
CASES += [("prefix", kind, path) for kind in ("llama-grouped", "gpt2", "qwen2-window") for path in PATHS][1:]


@pytest.mark.parametrize(("adapter", "kind", "path"), CASES)
@pytest.mark.parametrize("task", [CausalLM(), Chat()], ids=["causal-lm", "chat"])
def test_adapters_see_no_difference(adapter, task, kind, path, monkeypatch):
    """The chunked loss included: it is what runs where the output layer is frozen."""
    monkeypatch.setattr(attention, "WHOLE", PATHS[path])
    model = model_of(kind)
    torch.manual_seed(1)
    made = ADAPTERS[adapter]
    attached = made[0].attach(model, made[1], tiny.known(model, "llama"))
    with torch.no_grad():
        for parameter in tiny.trained(attached.model, attached.trainable):
            if not parameter.any():
                parameter.normal_(0, 0.1)
    attached.model.train()
    rows = [{"input_ids": [5 + (i * j) % 90 for j in range(1, n)]} for i, n in enumerate((9, 2, 17, 30), start=1)]
    for row in rows:
        row["labels"] = [IGNORE, *row["input_ids"][1:]]
    assert packed.check(attached.model.eval(), rows) is None
    loss, gradients = differences(attached.model.train(), rows, task)
    assert loss <= 1e-5 and gradients <= 1e-5


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_against_its_definition(path, heads, causal, monkeypatch):
    """In float64, with a mask over the whole sequence, which is what packed rows must not need."""
    monkeypatch.setattr(attention, "WHOLE", PATHS[path])
    lengths, size = (1, 7, 13, 2), 5
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, count, sum(lengths), size) for count in (heads[0], heads[1], heads[1])]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = row[:, None] == row[None, :]
    if causal:
        mask &= torch.ones_like(mask).tril()
    expected = nn.functional.scaled_dot_product_attention(*inputs, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    truth = torch.autograd.grad(expected, inputs, upstream)
    given_inputs = [t.detach().float().requires_grad_() for t in inputs]
    found, nothing = attention.attention(nn.Identity(), *given_inputs, None, is_causal=causal, segments=lengths)
    assert nothing is None and close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, given_inputs, upstream.float()), truth, strict=True):
        assert close(ours, theirs)


def close(found: Tensor, truth: Tensor) -> bool:
    return bool((found.double() - truth).norm() <= 1e-6 * truth.norm())


@pytest.mark.parametrize("path", PATHS)
def test_a_row_does_not_depend_on_its_neighbours_to_the_bit(path, monkeypatch):
    monkeypatch.setattr(attention, "WHOLE", PATHS[path])
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 12, 8, generator=generator) for _ in range(3))
    first, _ = attention.attention(nn.Identity(), query, key, value, None, segments=(5, 7))
    for tensor in (query, key, value):
        tensor[:, :, :5] = float("nan")
    second, _ = attention.attention(nn.Identity(), query, key, value, None, segments=(5, 7))
    assert first[:, 5:].equal(second[:, 5:]) and second[:, :5].isnan().all()


def test_no_mask_of_the_whole_sequence_is_made():
    """A packed batch of many short rows needs no [T, T] of anything."""
    model = model_of("llama-grouped").eval()
    assert attention.install(model) is None
    shapes: list[tuple[int, ...]] = []

    class Shapes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                shapes.append(tuple(result.shape))
            return result

    rows = [{"input_ids": [5] * 20, "labels": [IGNORE] * 20}] * 3
    with Shapes(), torch.no_grad():
        model(**packed.model_inputs(packed.collate(rows)), use_cache=False)
    assert (1, 60, 32) in shapes
    assert not [s for s in shapes if s.count(60) > 1]


def test_a_model_that_leaks_between_rows_is_found_out(monkeypatch):
    """Attention that ignores `segments`: what happens when a model drops unknown arguments on the way."""
    model = model_of("llama-grouped").eval()
    rows = [{"input_ids": list(range(5, 5 + n))} for n in (4, 9)]
    assert packed.check(model, rows) is None
    real = attention.attention

    def leaking(*arguments: Any, segments: Any = None, **options: Any) -> Any:
        return real(*arguments, segments=None if segments is None else (sum(segments),), **options)

    monkeypatch.setattr(attention, "attention", leaking)
    reason = packed.check(model, rows)
    assert reason is not None and "depend on its neighbour" in reason


def test_a_model_that_forgets_positions_is_found_out():
    model = model_of("llama-grouped").eval()

    def place(module: Any, inputs: Any, output: Tensor) -> Tensor:
        """A position that counts on through the whole sequence, whatever `position_ids` say."""
        return output + torch.arange(output.shape[1])[None, :, None] / 10

    model.model.embed_tokens.register_forward_hook(place)
    reason = packed.check(model, [{"input_ids": list(range(5, 5 + n))} for n in (4, 9)])
    assert reason is not None and "depend on its place" in reason


def test_a_model_that_sees_what_follows_is_found_out():
    model = model_of("llama-grouped").eval()

    def ahead(module: Any, inputs: Any, output: Tensor) -> Tensor:
        """Every position takes part in those before it, and nothing in those behind."""
        return output + output.flip(1).cumsum(1).flip(1)

    model.model.embed_tokens.register_forward_hook(ahead)
    reason = packed.check(model, [{"input_ids": list(range(5, 5 + n))} for n in (4, 9)])
    assert reason is not None and "depend on its neighbour" in reason


def test_models_with_attention_of_their_own_are_refused():
    torch.manual_seed(0)
    config = transformers.BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2)
    reason = packed.check(transformers.BloomForCausalLM(config).eval(), [{"input_ids": [5, 6]}] * 2)
    assert reason is not None and "BloomForCausalLM" in reason


@pytest.mark.parametrize("option", attention.UNKNOWN)
def test_options_that_are_not_built_are_refused(option):
    query = torch.randn(1, 2, 6, 4)
    with pytest.raises(ValueError, match=option):
        attention.attention(nn.Identity(), query, query, query, None, segments=(2, 4), **{option: torch.ones(2)})


def test_without_segments_it_is_transformers_own():
    model = model_of("llama-grouped").eval()
    inputs = tiny.batch()
    with torch.no_grad():
        before = model(**inputs).logits
        assert attention.install(model) is None
        assert model(**inputs).logits.equal(before)
