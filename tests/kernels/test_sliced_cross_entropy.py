"""The loss of an output layer that comes slice by slice: as with the weight at hand, in the memory that it states."""

from __future__ import annotations

import pytest
import torch
from allocations import peak_bytes
from hypothesis import example, given, settings
from hypothesis import strategies as st
from losses import DTYPES, IGNORE, MIB, both, error, inputs, naive, truth
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pefttool_kernels import cross_entropy, sliced_cross_entropy
from pefttool_kernels.sliced_cross_entropy import linear_cross_entropy, slice_rows, workspace_bytes


@settings(max_examples=60, deadline=None)
@example(tokens=1, hidden=1, vocabulary=1, with_bias=True, ignored=0, reduction="mean", size=1)
@example(tokens=50, hidden=8, vocabulary=130, with_bias=False, ignored=49, reduction="sum", size=1)
@given(
    tokens=st.integers(1, 70),
    hidden=st.integers(1, 40),
    vocabulary=st.integers(1, 300),
    with_bias=st.booleans(),
    ignored=st.integers(0, 69),
    reduction=st.sampled_from(("sum", "mean")),
    size=st.sampled_from((1, 20_000, 32 * MIB)),
)
def test_loss_and_gradient_are_pytorchs(tokens, hidden, vocabulary, with_bias, ignored, reduction, size):
    torch.manual_seed(tokens * hidden)
    h = torch.randn(tokens, hidden, requires_grad=True)
    weight = torch.randn(vocabulary, hidden)
    bias = torch.randn(vocabulary) if with_bias else None
    labels = torch.randint(vocabulary, (tokens,))
    labels[torch.randperm(tokens)[: min(ignored, tokens - 1)]] = IGNORE
    expected, dh = both(lambda x: naive(x, weight, labels, bias, reduction), h)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sliced_cross_entropy, "SLICE_BYTES", size)
        patch.setattr(cross_entropy, "BLOCK_BYTES", {"cpu": size // 8})
        loss, found = both(lambda x: linear_cross_entropy(x, weight, labels, bias, reduction=reduction), h)
        with torch.no_grad():
            assert torch.equal(linear_cross_entropy(h, weight, labels, bias, reduction=reduction), loss)
    assert loss.dtype == torch.float32 and loss.shape == ()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, dh, rtol=1e-4, atol=1e-5)
    assert not found[labels == IGNORE].any()


@pytest.mark.parametrize("size", [1.0, 6.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_is_about_as_near_the_truth_as_with_the_weight_at_hand(dtype, size, monkeypatch):
    """On a CPU every slice's product is rounded to the narrow dtype before it is added up: with few slices, a tenth."""
    monkeypatch.setattr(sliced_cross_entropy, "SLICE_BYTES", 1024 * 128 * dtype.itemsize)
    ours, theirs = [], []
    for seed in range(3):
        h, weight, labels = inputs(200, 128, 4099, torch.float32, seed)
        h, weight = (size * h.detach()).to(dtype).requires_grad_(), weight.to(dtype)
        _, exact = truth(h, weight, labels)
        for errors, loss in ((ours, linear_cross_entropy), (theirs, cross_entropy.linear_cross_entropy)):
            errors.append(error(torch.autograd.grad(loss(h, weight, labels), h)[0], exact))
    assert sum(ours) <= 1.1 * sum(theirs)


def test_a_certain_token_keeps_its_small_loss():
    weight = torch.eye(200)
    h = torch.full((1, 200), 0.0).requires_grad_()
    with torch.no_grad():
        h[0, 150] = 12.0
    loss, dh = both(lambda x: linear_cross_entropy(x, weight, torch.tensor([150])), h)
    expected, exact = truth(h, weight, torch.tensor([150]))
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-4, atol=0)
    assert error(dh, exact) < 1e-4


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tokens", "hidden", "vocabulary"), [(512, 256, 20_000), (300, 64, 60_000), (40, 512, 9000)])
def test_the_workspace_is_what_it_states(tokens, hidden, vocabulary, dtype, gradient, monkeypatch):
    monkeypatch.setattr(sliced_cross_entropy, "SLICE_BYTES", MIB)
    h, weight, labels = inputs(tokens, hidden, vocabulary, dtype)
    operator = torch.ops.pefttool.sliced_cross_entropy
    peak = peak_bytes(lambda: operator(h.detach(), weight, labels, None, IGNORE, gradient))
    found = peak - (tokens * hidden * 4 if gradient else 0)
    stated = workspace_bytes(int((labels != IGNORE).sum()), hidden, vocabulary, dtype, gradient)
    assert 0.9 * stated <= found <= 1.001 * stated + 16384


def test_on_a_card_a_slice_of_the_weight_comes_on_top():
    here = workspace_bytes(100, 64, 5000, torch.bfloat16)
    there = workspace_bytes(100, 64, 5000, torch.bfloat16, device_type="cuda")
    rows = slice_rows(100, 64, 5000, 2, "cuda")
    assert rows == 5000 and there >= here + rows * 64 * 2
    assert slice_rows(2048, 4096, 128_256, 2, "cuda") == 8192
    assert slice_rows(1 << 20, 4096, 128_256, 2, "cuda") == 64


def test_the_weight_keeps_its_dtype_under_autocast():
    """It is converted slice by slice."""
    h, weight, labels = inputs(9, 24, 300)
    with torch.autocast("cpu", torch.bfloat16):
        loss, dh = both(lambda x: linear_cross_entropy(x, weight, labels), h)
    narrow = h.detach().bfloat16().requires_grad_()
    expected, exact = both(lambda x: linear_cross_entropy(x, weight.bfloat16(), labels), narrow)
    assert torch.equal(loss, expected) and torch.equal(dh, exact.float())


def test_what_does_not_fit_is_refused():
    h, weight, labels = inputs(9, 24, 37)
    with pytest.raises(ValueError, match="weight requires a gradient"):
        linear_cross_entropy(h, nn.Parameter(weight), labels)
    with pytest.raises(ValueError, match="convert one of them, or use autocast"):
        linear_cross_entropy(h, weight.bfloat16(), labels)


@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_without_a_trained_token_the_loss_is_pytorchs_and_nothing_is_moved(tokens, monkeypatch):
    h, weight, labels = torch.randn(tokens, 5, requires_grad=True), torch.randn(11, 5), torch.full((tokens,), IGNORE)
    monkeypatch.setattr(sliced_cross_entropy, "_slices", lambda *arguments: pytest.fail("moved"))
    for reduction in ("sum", "mean"):
        expected, _ = both(lambda x, how=reduction: naive(x, weight, labels, reduction=how), h)
        loss, dh = both(lambda x, how=reduction: linear_cross_entropy(x, weight, labels, reduction=how), h)
        torch.testing.assert_close(loss, expected, rtol=0, atol=0, equal_nan=True)
        assert dh.shape == h.shape and not dh.any()


@pytest.mark.parametrize("label", [57, 1000, -1, -7])
def test_a_label_outside_the_vocabulary_makes_no_finite_loss(label, monkeypatch):
    """In the loss, and in this token's gradient alone, as Triton's kernel has it."""
    monkeypatch.setattr(sliced_cross_entropy, "SLICE_BYTES", 1)  # 57 words are one slice of 64, or the end of one
    h, weight, labels = inputs(9, 24, 57)
    known = h.detach()[[0, 1, 4]].requires_grad_()
    expected = torch.autograd.grad(naive(known, weight, labels[[0, 1, 4]]), known)[0]
    labels[3] = label
    labels[5:] = IGNORE
    loss, dh = both(lambda x: linear_cross_entropy(x, weight, labels), h)
    assert loss.isnan() and dh[3].isnan().all()
    torch.testing.assert_close(dh[[0, 1, 4]], expected)
    assert not dh[5:].any()


@pytest.mark.parametrize("module", [cross_entropy, sliced_cross_entropy], ids=["chunked", "sliced"])
@pytest.mark.parametrize("ignored", [-1, 0, 5, 36])
def test_any_label_can_be_the_one_that_does_not_count(module, ignored):
    h, weight, _ = inputs(40, 24, 37)
    labels = torch.randint(37, (40,), generator=torch.Generator().manual_seed(1))
    labels[::4] = ignored
    for reduction in ("sum", "mean"):

        def theirs(x, how=reduction):
            return nn.functional.cross_entropy(x @ weight.t(), labels, ignore_index=ignored, reduction=how)

        expected, exact = both(theirs, h)
        loss, dh = both(lambda x, how=reduction: module.linear_cross_entropy(x, weight, labels, None, ignored, how), h)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(dh, exact, rtol=1e-4, atol=1e-5)
        assert not dh[labels == ignored].any()


@pytest.mark.parametrize("module", [cross_entropy, sliced_cross_entropy], ids=["chunked", "sliced"])
def test_operands_may_have_any_strides(module):
    """Every other row and column of larger ones; a transposed weight."""
    wide = torch.randn(18, 48, generator=torch.Generator().manual_seed(0))
    h = wide[::2, ::2].requires_grad_()
    weight = torch.randn(24, 74, generator=torch.Generator().manual_seed(1)).t()[::2]
    labels = torch.randint(37, (18,), generator=torch.Generator().manual_seed(2))[::2]
    bias = torch.randn(74, generator=torch.Generator().manual_seed(3))[::2]
    expected, exact = both(lambda x: naive(x, weight, labels, bias), h)
    loss, dh = both(lambda x: module.linear_cross_entropy(x, weight, labels, bias), h)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(dh, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", [cross_entropy, sliced_cross_entropy], ids=["chunked", "sliced"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_stays_so_and_touches_no_other_token(module, value):
    h, weight, labels = inputs(9, 24, 37)
    with torch.no_grad():
        h[4, 2] = value
    _, exact = both(lambda x: naive(x, weight, labels), h)
    loss, dh = both(lambda x: module.linear_cross_entropy(x, weight, labels), h)
    assert not loss.isfinite() and not dh[4].isfinite().all()
    others = [i for i in range(9) if i != 4]
    torch.testing.assert_close(dh[others], exact[others], rtol=1e-4, atol=1e-5)


def test_it_can_be_traced():
    with FakeTensorMode():
        h, weight, labels = torch.empty(9, 24, requires_grad=True), torch.empty(37, 24), torch.zeros(9).long()
        loss = linear_cross_entropy(h, weight, labels)
        loss.backward()
    assert loss.shape == () and h.grad.shape == h.shape
