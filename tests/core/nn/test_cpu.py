"""What is faster on a CPU gives what PyTorch gives: attention of padded rows, dropout; and the random state is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import eager_attention_forward

from pefttool.nn import attention, cpu, cpu_attention, dropout


def close(found: Tensor, truth: Tensor) -> bool:
    return bool((found.double() - truth).norm() <= 1e-6 * truth.norm())


def inputs(heads: int, key_heads: int, tokens: int, keys: int, rows: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, heads, tokens, 6), (rows, key_heads, keys, 6), (rows, key_heads, keys, 6)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("block", [1, 1 << 22])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("keys", [9, 12])  # 12: a prefix of three before the sequence
def test_padded_attention_against_its_definition(block, heads, key_heads, keys, monkeypatch):
    monkeypatch.setattr(cpu_attention, "BLOCK", block)
    tensors = inputs(heads, key_heads, 9, keys)
    mask = torch.ones(5, 1, 9, keys, dtype=torch.bool).tril(keys - 9)
    mask[2, :, :, -4:] = False
    expected = scaled_dot_product_attention(*tensors, attn_mask=mask, enable_gqa=True, scale=0.3).transpose(1, 2)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = torch.autograd.grad(expected, tensors, upstream)
    singles = [t.detach().float().requires_grad_() for t in tensors]
    assert attention._whole_is_faster(singles[0], singles[1], mask, causal=True)
    found, _ = attention.attention(nn.Identity(), *singles, mask, scaling=0.3)
    assert close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, singles, upstream.float()), truth, strict=True):
        assert close(ours, theirs)


@pytest.mark.parametrize("tile", [1, 3, 128])
@pytest.mark.parametrize("causal", [True, False])
def test_packed_attention_by_tiles_against_its_definition(tile, causal, monkeypatch):
    monkeypatch.setattr(attention, "TILE", tile)
    segments = (7, 1, 10, 3)
    tensors = inputs(6, 2, 21, 21, rows=1)
    row = torch.repeat_interleave(torch.arange(4), torch.tensor(segments))
    mask = row[:, None] == row[None, :]
    if causal:
        mask = mask.tril()
    expected = scaled_dot_product_attention(*tensors, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = torch.autograd.grad(expected, tensors, upstream)
    singles = [t.detach().float().requires_grad_() for t in tensors]
    found, _ = attention.attention(nn.Identity(), *singles, None, is_causal=causal, segments=segments)
    assert close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, singles, upstream.float()), truth, strict=True):
        assert close(ours, theirs)


def test_in_bfloat16_tiles_are_no_further_from_the_truth_than_whole_probabilities():
    """Against transformers' eager attention; geometric mean over output and gradients."""
    made = [t.detach().bfloat16() for t in inputs(6, 2, 300, 300, rows=1)]
    upstream = torch.randn(1, 300, 6, 6, generator=torch.Generator().manual_seed(1)).bfloat16()

    def results(fast: bool, dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in made]
        if fast:
            output, _ = attention.attention(nn.Identity(), *leaves, None, segments=(300,))
        else:
            module = nn.Module()
            module.num_key_value_groups = 3  # type: ignore[assignment]
            hidden = torch.full((300, 300), float("-inf"), dtype=dtype).triu_(1)
            output, _ = eager_attention_forward(module, *leaves, hidden, scaling=6**-0.5)
        return [
            output.detach().double(),
            *(t.double() for t in torch.autograd.grad(output, leaves, upstream.to(dtype))),
        ]

    truth = results(False, torch.float64)
    mine, theirs = (
        torch.stack([(r - t).norm() for r, t in zip(results(fast, torch.bfloat16), truth, strict=True)])
        for fast in (True, False)
    )
    assert float((mine / theirs).log().mean().exp()) <= 1.0


def test_a_row_of_padding_alone_is_finite():
    tensors = [t.detach().float().requires_grad_() for t in inputs(2, 2, 4, 4)]
    mask = torch.ones(5, 1, 4, 4, dtype=torch.bool)
    mask[1] = False
    output, _ = attention.attention(nn.Identity(), *tensors, mask)
    output.sum().backward()
    assert all(bool(t.grad.isfinite().all()) for t in tensors if t.grad is not None) and bool(output.isfinite().all())


@pytest.mark.parametrize("segments", [None, (4, 5)])
def test_dropped_probabilities_have_the_gradient_of_what_was_drawn(segments):
    """Against plain PyTorch with the same draws."""
    tensors = inputs(4, 2, 9, 9, rows=1)
    drawn: list[Tensor] = []
    real = cpu_attention.keep

    def noted(like: Tensor, rate: float) -> Tensor:
        drawn.append(real(like, rate))
        return drawn[-1]

    singles = [t.detach().float().requires_grad_() for t in tensors]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_attention, "keep", noted)
        mask = None if segments else torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
        found, _ = attention.attention(nn.Identity(), *singles, mask, dropout=0.4, segments=segments)
    parts, start = [], 0
    for length, factor in zip(segments or (9,), drawn, strict=True):
        q, k, v = (t[:, :, start : start + length] for t in tensors)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        p = (q @ k.transpose(2, 3) * 6**-0.5).masked_fill(hidden, float("-inf")).softmax(-1)
        parts.append((p * factor.view(p.shape).double()) @ v)
        start += length
    assert any(bool((factor == 0).any()) for factor in drawn)
    expected = torch.cat(parts, 2).transpose(1, 2)
    assert close(found, expected)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = torch.autograd.grad(expected, tensors, upstream)
    for ours, theirs in zip(torch.autograd.grad(found, singles, upstream.float()), truth, strict=True):
        assert close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.93])
def test_dropout_keeps_the_mean_and_drops_its_share(rate, dtype):
    torch.manual_seed(0)
    kept = dropout.keep(torch.empty(513, 777, dtype=dtype), rate)
    share = float((kept == 0).float().mean())
    assert abs(share - rate) < 4 * (rate * (1 - rate) / kept.numel()) ** 0.5  # four standard deviations
    assert kept.unique().tolist() == [0.0, float(torch.tensor(1 / (1 - rate), dtype=dtype))]
    lagged = (kept.flatten()[:-1] == 0) & (kept.flatten()[1:] == 0)  # one draw decides four neighbours
    assert abs(float(lagged.float().mean()) - rate**2) < 0.01


def test_dropout_follows_the_seed_and_evaluation_has_none():
    layer, values = dropout.FastDropout(0.3), torch.ones(7, 11)
    torch.manual_seed(3)
    first, second = layer(values), layer(values)
    torch.manual_seed(3)
    assert layer(values).equal(first) and not second.equal(first)
    assert layer.eval()(values).equal(values)


def test_the_gradient_of_dropout_is_what_was_kept():
    values = torch.ones(5, 13, requires_grad=True)
    output = dropout.FastDropout(0.3)(values)
    output.sum().backward()
    assert values.grad is not None and values.grad.equal(output.detach())


def small_bert(**options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, **options
    )
    return transformers.BertForSequenceClassification(config)


def test_a_model_made_quicker_gives_the_same_gradients():
    model = small_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    batch = {"input_ids": torch.arange(24).view(3, 8), "attention_mask": torch.ones(3, 8, dtype=torch.long)}
    batch["attention_mask"][1, 5:] = 0
    gradients = []
    for quick in (False, True):
        if quick:
            cpu.quicken(model)
        model.zero_grad()
        model(**batch, labels=torch.tensor([0, 1, 0])).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    largest = max(float(g.norm()) for g in gradients[0].values())
    assert gradients[0].keys() == gradients[1].keys()
    assert all(float((gradients[0][n] - gradients[1][n]).norm()) <= 1e-5 * largest for n in gradients[0])


def test_quickening_leaves_names_state_and_configuration_alone():
    model = small_bert()
    names = [name for name, _ in model.named_modules()]
    cpu.quicken(model)
    assert [name for name, _ in model.named_modules()] == names
    assert any(type(module) is dropout.FastDropout for module in model.modules())
    assert "attn" not in model.config.to_json_string()


@pytest.mark.parametrize("segments", [None, (4, 5)])
def test_under_autocast_everything_is_rounded_alike(segments):
    """Float32 inputs (weights that train) under autocast: as if they had been cast, gradients in the inputs' dtype."""
    singles = [t.detach().float().requires_grad_() for t in inputs(4, 2, 9, 9, rows=1)]
    cast = [t.detach().bfloat16().requires_grad_() for t in singles]
    mask = None if segments else torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = attention.attention(nn.Identity(), *singles, mask, segments=segments)
    expected, _ = attention.attention(nn.Identity(), *cast, mask, segments=segments)
    assert found.dtype == torch.bfloat16 and found.equal(expected)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    found_gradients = torch.autograd.grad(found, singles, upstream)
    for ours, theirs in zip(found_gradients, torch.autograd.grad(expected, cast, upstream), strict=True):
        assert ours.dtype == torch.float32 and ours.equal(theirs.float())
