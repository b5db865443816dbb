"""linear_cross_entropy: no worse a gradient than PyTorch's, a fraction of the memory, every way of calling it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from allocations import peak_bytes
from hypothesis import example, given, settings
from hypothesis import strategies as st
from losses import DTYPES, IGNORE, MIB, Inputs, both, error, inputs, naive, truth
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from pefttool_kernels import cross_entropy
from pefttool_kernels.cross_entropy import block_rows, chunk_rows, linear_cross_entropy, workspace_bytes

#: A small call: everything but figures is tested on it.
SHAPE = (9, 24, 37)


@pytest.fixture
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 rows, blocks of one."""
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", {"cpu": 1})
    monkeypatch.setattr(cross_entropy, "BLOCK_BYTES", {"cpu": 1})


@settings(max_examples=60, deadline=None)
@example(tokens=1, hidden=1, vocabulary=1, with_bias=True, ignored=0, reduction="mean", chunk=1)
@example(tokens=50, hidden=8, vocabulary=33, with_bias=False, ignored=49, reduction="sum", chunk=1)
@given(
    tokens=st.integers(1, 70),
    hidden=st.integers(1, 40),
    vocabulary=st.integers(1, 300),
    with_bias=st.booleans(),
    ignored=st.integers(0, 69),
    reduction=st.sampled_from(("sum", "mean")),
    chunk=st.sampled_from((1, 20_000, 32 * MIB)),
)
def test_loss_and_gradient_are_pytorchs(tokens, hidden, vocabulary, with_bias, ignored, reduction, chunk):
    torch.manual_seed(tokens * hidden)
    h = torch.randn(tokens, hidden, requires_grad=True)
    weight = torch.randn(vocabulary, hidden)
    bias = torch.randn(vocabulary) if with_bias else None
    labels = torch.randint(vocabulary, (tokens,))
    labels[torch.randperm(tokens)[: min(ignored, tokens - 1)]] = IGNORE
    expected, dh = both(lambda x: naive(x, weight, labels, bias, reduction), h)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "CHUNK_BYTES", {"cpu": chunk})
        patch.setattr(cross_entropy, "BLOCK_BYTES", {"cpu": chunk // 8})
        loss, found = both(lambda x: linear_cross_entropy(x, weight, labels, bias, reduction=reduction), h)
        with torch.no_grad():
            assert torch.equal(linear_cross_entropy(h, weight, labels, bias, reduction=reduction), loss)
    assert loss.dtype == torch.float32 and loss.shape == ()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, dh, rtol=1e-4, atol=1e-5)
    assert not found[labels == IGNORE].any()


#: How large h is, and how strongly it points at the label's row of W: from all tokens alike to a trained model.
REGIMES = {"flat": (1.0, 0.0), "sharp": (6.0, 0.0), "trained": (0.5, 4.0)}
SEEDS = range(5)


@pytest.mark.parametrize("divisor", [1.0, 71.0])
@pytest.mark.parametrize("regime", list(REGIMES))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_is_no_further_from_the_truth_than_pytorchs(dtype, regime, divisor):
    """Of the sum, and of the sum divided, as an objective is: the two round at different places.

    Where logits are large, both have rounded the same logits, which decides both errors. The fiftieth is what a CPU's
    product takes by rounding its result: seen with bfloat16 only, and less often than PyTorch's own rounding.
    """
    size, pull = REGIMES[regime]
    ours, theirs = [], []
    for seed in SEEDS:
        h, weight, labels = inputs(200, 128, 4099, torch.float32, seed)
        labels = labels.clamp(min=0)
        unit = weight[labels] / weight[labels].square().sum(1, keepdim=True)
        h = (size * h.detach() + pull * unit * 4).to(dtype).requires_grad_()
        weight = weight.to(dtype)
        _, exact = truth(h, weight, labels)
        their_loss, gradient = both(lambda x, w=weight, y=labels: naive(x, w, y) / divisor, h)
        theirs.append(error(gradient, exact / divisor))
        loss, gradient = both(lambda x, w=weight, y=labels: linear_cross_entropy(x, w, y) / divisor, h)
        ours.append(error(gradient, exact / divisor))
        torch.testing.assert_close(loss, their_loss, rtol=1e-5, atol=0)
    assert torch.tensor(ours).norm() <= 1.02 * torch.tensor(theirs).norm()


@pytest.mark.parametrize("size", [4, 8, 10, 12, 20])
def test_small_losses_keep_their_digits(size):
    """As many as PyTorch's own, down to where float32 has none left: 1 - p is a multiple of 6e-8."""
    h, weight, _ = inputs(40, 64, 999)
    labels = torch.arange(40)
    h = (weight[:40] * size).requires_grad_()
    expected, _ = truth(h, weight, labels)
    theirs = error(naive(h, weight, labels).detach(), expected)
    assert error(linear_cross_entropy(h, weight, labels).detach(), expected) <= max(1e-6, 1.05 * theirs)


def test_nothing_to_train():
    h, weight, labels = inputs(*SHAPE)
    labels = torch.full_like(labels, IGNORE)
    loss, dh = both(lambda x: linear_cross_entropy(x, weight, labels), h)
    assert float(loss) == 0.0 and dh.shape == h.shape and not dh.any()
    loss, dh = both(lambda x: linear_cross_entropy(x, weight, labels, reduction="mean"), h)
    assert bool(loss.isnan()) and bool(naive(h, weight, labels, reduction="mean").isnan())
    assert dh.shape == h.shape and not dh.any()
    empty = torch.empty(0, h.shape[1], requires_grad=True)
    loss, dh = both(lambda x: linear_cross_entropy(x, weight, labels[:0]), empty)
    assert float(loss) == 0.0 and dh.shape == empty.shape


def test_another_label_may_be_the_ignored_one():
    h, weight, labels = inputs(*SHAPE)
    zero = labels.masked_fill(labels == IGNORE, 0)
    expected = nn.functional.cross_entropy(h @ weight.t(), zero, ignore_index=0, reduction="sum")
    torch.testing.assert_close(linear_cross_entropy(h, weight, zero, ignore_index=0), expected)


def test_impossible_words_are_no_obstacle():
    """A bias of minus infinity takes a word away."""
    h, weight, labels = inputs(*SHAPE)
    bias = torch.zeros(SHAPE[2])
    bias[[word for word in range(SHAPE[2]) if word not in labels.tolist()][:3]] = -torch.inf
    expected, exact = truth(h, weight, labels, bias)
    loss, dh = both(lambda x: linear_cross_entropy(x, weight, labels, bias), h)
    assert error(loss, expected) < 1e-6 and error(dh, exact) < 1e-6


def test_what_is_refused():
    h, weight, labels = inputs(*SHAPE)
    with pytest.raises(ValueError, match=r"weight requires a gradient.*freeze it, or use torch's cross_entropy"):
        linear_cross_entropy(h, weight.requires_grad_(), labels)
    with torch.no_grad():
        linear_cross_entropy(h, weight, labels)
    weight = weight.detach()
    with pytest.raises(ValueError, match="bias requires a gradient"):
        linear_cross_entropy(h, weight, labels, torch.zeros(SHAPE[2], requires_grad=True))
    with pytest.raises(ValueError, match="'sum' or 'mean'"):
        linear_cross_entropy(h, weight, labels, reduction="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"hidden \(9, 24\), weight \(37, 23\)"):
        linear_cross_entropy(h, weight[:, 1:], labels)
    with pytest.raises(ValueError, match="convert one of them"):
        linear_cross_entropy(h, weight.bfloat16(), labels)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        linear_cross_entropy(h, weight, labels + SHAPE[2])


def test_there_is_no_second_derivative():
    h, weight, labels = inputs(*SHAPE)
    (dh,) = torch.autograd.grad(linear_cross_entropy(h, weight, labels), h, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        dh.square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradient", [True, False])
def test_pytorch_finds_no_fault_with_the_operator(dtype, gradient):
    """Schema, autograd registration and fake implementation; and tracing with dynamic shapes.

    Tracing differentiates every output, and the gradient that comes out beside the loss refuses that: it is traced
    where nothing asks for one.
    """
    h, weight, labels = inputs(*SHAPE, dtype)
    bias = torch.randn(SHAPE[2]).to(dtype)
    operator = torch.ops.pefttool.linear_cross_entropy.default
    torch.library.opcheck(operator, (h.detach(), weight, labels, bias, IGNORE, gradient))
    if gradient:
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(operator, (h, weight, labels, bias, IGNORE, True), test_utils=checks)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_fake_tensors_know_shapes_dtypes_and_gradients(reduction):
    with FakeTensorMode():
        h = torch.empty(9, 24, dtype=torch.bfloat16, requires_grad=True)
        weight, labels = torch.empty(37, 24, dtype=torch.bfloat16), torch.zeros(9, dtype=torch.int64)
        loss = linear_cross_entropy(h, weight, labels, reduction=reduction)
        assert (loss.shape, loss.dtype) == ((), torch.float32)
        loss.backward()
    assert (h.grad.shape, h.grad.dtype) == (h.shape, h.dtype)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("backend", "dynamic"), [("aot_eager", False), ("aot_eager", True), ("inductor", False)])
def test_compiling_changes_nothing(backend, dynamic, reduction):
    h, weight, labels = inputs(*SHAPE, torch.bfloat16)

    def loss(x: Tensor) -> Tensor:
        return linear_cross_entropy(2 * x, weight, labels, reduction=reduction)

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=backend, dynamic=dynamic)
    for one, other in zip(both(loss, h), both(compiled, h), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(compiled(h), loss(h))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_nothing(use_reentrant):
    h, weight, labels = inputs(*SHAPE)

    def loss(x: Tensor) -> Tensor:
        return linear_cross_entropy(x.sin(), weight, labels)

    def step(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        x = h.detach().clone().requires_grad_()
        value = function(x)
        (3 * value).backward()
        return value.detach(), x.grad

    again = step(lambda x: checkpoint(loss, x, use_reentrant=use_reentrant))
    assert all(torch.equal(one, other) for one, other in zip(step(loss), again, strict=True))


def test_autocast_decides_the_dtype_of_the_product():
    h, weight, labels = inputs(*SHAPE)
    narrow = h.detach().bfloat16().requires_grad_()
    expected, dh = both(lambda x: linear_cross_entropy(x, weight.bfloat16(), labels), narrow)
    with torch.autocast("cpu", torch.bfloat16):
        loss, found = both(lambda x: linear_cross_entropy(x, weight, labels), h)
        mixed, again = both(lambda x: linear_cross_entropy(x, weight, labels), narrow)
    assert torch.equal(loss, expected) and found.dtype == torch.float32
    assert torch.equal(found, dh.float())
    assert torch.equal(mixed, expected) and torch.equal(again, dh)


def test_whatever_the_backward_pass_needs_can_be_packed_away_in_between():
    """Saved-tensor hooks see the one tensor that is kept, and what they give back is what is used."""
    h, weight, labels = inputs(*SHAPE)
    _, expected = both(lambda x: linear_cross_entropy(x, weight, labels), h)
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), lambda t: 2 * t):
        loss = linear_cross_entropy(h, weight, labels)
    assert [tuple(t.shape) for t in packed] == [tuple(h.shape)]
    (found,) = torch.autograd.grad(loss, h)
    assert torch.equal(found, 2 * expected)


@pytest.mark.parametrize("gradient", [True, False])
def test_without_gradients_only_the_loss_is_computed(gradient):
    h, weight, labels = inputs(*SHAPE)
    loss, dx = torch.ops.pefttool.linear_cross_entropy(h.detach(), weight, labels, None, IGNORE, gradient)
    assert dx.shape == ((9, 24) if gradient else (0, 24))
    torch.testing.assert_close(loss, naive(h, weight, labels).detach())


@given(st.integers(0, 5000), st.integers(1, 300_000), st.sampled_from((2, 4)), st.sampled_from(("cpu", "cuda")))
def test_chunks_are_even_and_within_their_budget(tokens, vocabulary, itemsize, device_type):
    rows = chunk_rows(tokens, vocabulary, itemsize, device_type)
    budget = cross_entropy.CHUNK_BYTES.get(device_type, cross_entropy.OTHER_CHUNK_BYTES)
    assert 1 <= rows <= max(1, tokens)
    assert rows * vocabulary * itemsize <= max(budget, cross_entropy.ROW_STEP * vocabulary * itemsize)
    chunks = -(-tokens // rows)
    assert tokens - (chunks - 1) * rows > 0 or tokens == 0
    assert rows == max(1, tokens) or rows % cross_entropy.ROW_STEP == 0
    assert 1 <= block_rows(rows, vocabulary, 4, device_type) <= rows


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tokens", "hidden", "vocabulary"), [(300, 64, 49152), (300, 2048, 5003), (700, 96, 32000)])
def test_stated_is_measured(tokens, hidden, vocabulary, dtype, gradient):
    """Within 5 %, which is what the row-wise results and the second narrow product's copies may differ by."""
    h, weight, labels = inputs(tokens, hidden, vocabulary, dtype)
    every = labels.clamp(min=0)
    operator = torch.ops.pefttool.linear_cross_entropy
    for some in (every, labels):
        peak = peak_bytes(lambda some=some: operator(h.detach(), weight, some, None, IGNORE, gradient))
        found = peak - (tokens * hidden * 4 if gradient else 0)
        stated = workspace_bytes(int((some != IGNORE).sum()), hidden, vocabulary, dtype, gradient)
        assert 0.95 * stated <= found <= 1.001 * stated + 16384


def test_memory_is_an_eighth_of_the_naive_path_at_most():
    h, weight, labels = inputs(2048, 64, 128_256, torch.bfloat16)
    labels = labels.clamp(min=0)
    ours = peak_bytes(lambda: both(lambda x: linear_cross_entropy(x, weight, labels), h))
    theirs = peak_bytes(lambda: both(lambda x: naive(x, weight, labels), h))
    assert ours <= theirs / 8
    assert ours <= 40 * MIB
