"""The operators on the CPU: every gradient against float64, and everything that PyTorch may do around them."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import WORST, eight_bit, error, four_bit
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from pefttool_kernels import ops
from pefttool_kernels.dispatch import BackendError
from pefttool_kernels.layout import EightBitWeight
from pefttool_kernels.selftest import reference

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
#: bitsandbytes rounds an int8 weight before it multiplies by it, and so do we: two roundings in 16 bits.
WORST_8BIT = {torch.bfloat16: 2.6e-3, torch.float16: 3.5e-4, torch.float32: 1e-5}


def random(*shape: int, dtype: torch.dtype, seed: int, scale: float = 1.0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale
    return values.to(dtype).requires_grad_()


def weights(kind: str, n: int, k: int, dtype: torch.dtype) -> tuple[Any, Tensor]:
    if kind == "int8":
        return eight_bit(n, k)
    quant_type, _, plain = kind.partition("-")
    return four_bit(n, k, dtype, quant_type, nested=not plain)


def product(x: Tensor, weight: Any, *rest: Any) -> Tensor:
    return (ops.linear_8bit if isinstance(weight, EightBitWeight) else ops.linear_4bit)(x, weight, *rest)


KINDS = ["nf4", "nf4-plain", "fp4", "fp4-plain", "int8"]


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    m=st.integers(1, 70),
    n=st.integers(1, 140),
    k=st.one_of(st.integers(1, 5).map(lambda blocks: 64 * blocks), st.integers(1, 150).map(lambda half: 2 * half)),
    rank=st.integers(0, 9),
    bias=st.booleans(),
    backend=st.sampled_from(["auto", "bitsandbytes"]),
)
def test_the_output_and_every_gradient_are_rounded_once(kind, dtype, m, n, k, rank, bias, backend):
    weight, dequantised = weights(kind, n, k, dtype)
    x = random(m, k, dtype=dtype, seed=1)
    a = random(rank, k, dtype=torch.float32, seed=2, scale=0.02)
    b = random(n, rank, dtype=torch.float32, seed=3)
    offset = random(n, dtype=dtype, seed=4) if bias else None
    lora = ops.LowRank(a, b, 0.5) if rank else None
    result = product(x, weight, offset, lora, backend)
    g = random(m, n, dtype=dtype, seed=5).detach()
    result.backward(g)
    truth = {name: t.detach().double().requires_grad_() for name, t in (("x", x), ("a", a), ("b", b))}
    truth_bias = None if offset is None else offset.detach().double().requires_grad_()
    lora_truth = (truth["a"], truth["b"]) if rank else (None, None)
    expected = reference.linear(truth["x"], dequantised, truth_bias, *lora_truth, 0.5)
    expected.backward(g.double())
    worst = (WORST_8BIT if kind == "int8" else WORST)[dtype]
    few = torch.finfo(dtype).eps
    assert result.shape == (m, n) and result.dtype == dtype
    if m * n >= 64:
        assert error(result, expected) <= worst
    # A handful of values is no average, and what is left of terms that cancel is no measure: their sum is.
    magnitude = reference.linear(
        truth["x"].abs(), dequantised.abs(), *(t if t is None else t.abs() for t in (truth_bias, *lora_truth)), 0.5
    )
    assert ((result.double() - expected).abs() <= few * magnitude + worst * magnitude).all()
    if m * k >= 64:
        assert error(x.grad, truth["x"].grad) <= worst
    if rank:
        assert error(a.grad, truth["a"].grad) <= 1e-5
        assert error(b.grad, truth["b"].grad) <= 1e-5
    if offset is not None:
        assert error(offset.grad, truth_bias.grad) <= max(WORST[dtype], few)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_in_bfloat16_get_gradients_that_are_rounded_once(kind):
    weight, dequantised = weights(kind, 96, 192, torch.bfloat16)
    x = random(50, 192, dtype=torch.bfloat16, seed=1)
    a = random(8, 192, dtype=torch.bfloat16, seed=2, scale=0.1)
    b = random(96, 8, dtype=torch.bfloat16, seed=3)
    g = random(50, 96, dtype=torch.bfloat16, seed=4).detach()
    product(x, weight, None, ops.LowRank(a, b, 2.0)).backward(g)
    xs, as_, bs = (t.detach().double().requires_grad_() for t in (x, a, b))
    reference.linear(xs, dequantised, None, as_, bs, 2.0).backward(g.double())
    assert a.grad.dtype == b.grad.dtype == torch.bfloat16
    assert error(a.grad, as_.grad) <= WORST[torch.bfloat16]
    assert error(b.grad, bs.grad) <= WORST[torch.bfloat16]


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_leading_dimensions_and_strided_inputs(kind):
    weight, _ = weights(kind, 33, 128, torch.bfloat16)
    flat = random(12, 128, dtype=torch.bfloat16, seed=1)
    expected = product(flat, weight)
    assert torch.equal(product(flat.view(2, 3, 2, 128), weight), expected.view(2, 3, 2, 33))
    assert torch.equal(product(flat[0], weight), product(flat[:1], weight)[0])
    strided = flat.detach().t().contiguous().t().requires_grad_()
    output = product(strided, weight)
    assert torch.equal(output, expected)
    output.t().contiguous().t().backward(torch.ones(33, 12, dtype=torch.bfloat16).t())
    expected.backward(torch.ones_like(expected))
    assert torch.equal(strided.grad, flat.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_at_all(kind):
    weight, _ = weights(kind, 33, 128, torch.bfloat16)
    x = random(0, 128, dtype=torch.bfloat16, seed=1)
    a, b = random(4, 128, dtype=torch.float32, seed=2), random(33, 4, dtype=torch.float32, seed=3)
    output = product(x, weight, None, ops.LowRank(a, b))
    assert output.shape == (0, 33)
    output.sum().backward()
    assert x.grad.shape == (0, 128)
    assert not a.grad.any() and not b.grad.any()


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(33, 192), (7, 70), (1, 64), (300, 64)])
def test_dequantised_weights_are_bitsandbytes_own(dtype, quant_type, nested, n, k):
    weight, expected = four_bit(n, k, dtype, quant_type, nested)
    assert torch.equal(ops.dequantize_4bit(weight, dtype), expected)
    assert torch.equal(reference.dequantize_4bit(weight, dtype), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [0, 5])
def test_pytorch_finds_no_fault_with_the_operators(kind, rank):
    """Schema, autograd registration, fake implementation, and tracing with dynamic shapes."""
    weight, _ = weights(kind, 33, 128, torch.float32)
    x = random(6, 128, dtype=torch.float32, seed=1)
    lora = (None, None)
    if rank:
        lora = (random(rank, 128, dtype=torch.float32, seed=2), random(33, rank, dtype=torch.float32, seed=3))
    name = "linear_8bit" if kind == "int8" else "linear_4bit"
    bias = random(33, dtype=torch.float32, seed=4)
    arguments = weight.arguments()
    torch.library.opcheck(getattr(torch.ops.pefttool, name).default, (x, *arguments, bias, *lora, 0.5, "auto"))
    g = random(6, 33, dtype=torch.float32, seed=5).detach()
    backward = getattr(torch.ops.pefttool, f"{name}_dx").default
    torch.library.opcheck(backward, (g, *arguments, None, None, "auto"))


@pytest.mark.parametrize("kind", KINDS)
def test_fake_tensors_know_shapes_dtypes_and_gradients(kind):
    weight, _ = weights(kind, 33, 128, torch.bfloat16)
    with FakeTensorMode() as mode:
        fake = type(weight)(*(mode.from_tensor(v) if isinstance(v, Tensor) else v for v in weight.arguments()))
        x = torch.empty(2, 5, 128, dtype=torch.bfloat16, requires_grad=True)
        a, b = torch.empty(4, 128, requires_grad=True), torch.empty(33, 4, requires_grad=True)
        output = product(x, fake, None, ops.LowRank(a, b))
        assert (output.shape, output.dtype) == ((2, 5, 33), torch.bfloat16)
        output.sum().backward()
    assert [t.grad.shape for t in (x, a, b)] == [t.shape for t in (x, a, b)]


def gradients(function: Any, x: Tensor, *trained: Tensor) -> list[Tensor]:
    output = function()
    generator = torch.Generator().manual_seed(9)
    output.backward(torch.randn(output.shape, generator=generator).to(output.dtype))
    found = [output.detach(), x.grad.clone(), *(t.grad.clone() for t in trained)]
    for tensor in (x, *trained):
        tensor.grad = None
    return found


@pytest.fixture
def layer() -> dict[str, Any]:
    weight, _ = four_bit(33, 128)
    return {
        "weight": weight,
        "x": random(3, 5, 128, dtype=torch.bfloat16, seed=1),
        "a": random(4, 128, dtype=torch.float32, seed=2),
        "b": random(33, 4, dtype=torch.float32, seed=3),
        "bias": random(33, dtype=torch.bfloat16, seed=4),
    }


def call(layer: dict[str, Any], x: Tensor | None = None) -> Tensor:
    lora = ops.LowRank(layer["a"], layer["b"], 2.0)
    return ops.linear_4bit(layer["x"] if x is None else x, layer["weight"], layer["bias"], lora)


def trained(layer: dict[str, Any]) -> list[Tensor]:
    return [layer["a"], layer["b"], layer["bias"]]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_nothing(layer, use_reentrant):
    plain = gradients(lambda: call(layer), layer["x"], *trained(layer))
    again = gradients(
        lambda: checkpoint(lambda x: call(layer, x), layer["x"], use_reentrant=use_reentrant),
        layer["x"],
        *trained(layer),
    )
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_compiling_changes_nothing(layer):
    plain = gradients(lambda: call(layer), layer["x"], *trained(layer))
    compiled = torch.compile(lambda x: call(layer, x), fullgraph=True, backend="aot_eager")
    again = gradients(lambda: compiled(layer["x"]), layer["x"], *trained(layer))
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_autocast_decides_the_dtype_of_the_product_and_nothing_else(layer):
    x = layer["x"].detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = call(layer, x)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, call(layer))
    output.sum().backward()
    assert x.grad.dtype == torch.float32 and layer["a"].grad.dtype == torch.float32


def test_whatever_the_backward_pass_needs_can_be_packed_away_in_between(layer):
    """Saved-tensor hooks (offloading, checkpointing) see every tensor, and what they give back is what is used."""
    plain = gradients(lambda: call(layer), layer["x"], *trained(layer))
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), lambda t: t):
        output = call(layer)
    shapes = {tuple(t.shape) for t in packed}
    weight = layer["weight"]
    needed = (weight.packed, weight.absmax, weight.code, weight.nested_absmax, layer["a"], layer["b"])
    assert {tuple(t.shape) for t in needed} <= shapes
    zeroed = [t.clone() for t in packed if t.dtype == torch.uint8]
    for tensor in packed:
        if tensor.dtype == torch.uint8:
            tensor.zero_()  # the storage is reused for another layer: swapped weights
    generator = torch.Generator().manual_seed(9)
    output.backward(torch.randn(output.shape, generator=generator).to(output.dtype))
    assert zeroed and torch.equal(layer["x"].grad, plain[1])


def test_without_an_adapter_the_input_is_not_kept():
    weight, _ = four_bit(33, 128)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        x = random(3, 128, dtype=torch.bfloat16, seed=1)
        ops.linear_4bit(x, weight)
    assert kept and x.data_ptr() not in kept


def test_a_backend_that_cannot_is_an_error(layer):
    with pytest.raises(BackendError, match=r"it runs on a GPU.*choose .*tiles"):
        ops.linear_4bit(layer["x"], layer["weight"], backend="triton")
    with pytest.raises(BackendError, match="one of triton, dequantize, tiles"):
        ops.linear_4bit(layer["x"], layer["weight"], backend="cublas")
    with pytest.raises(BackendError, match="does not dequantise"):
        ops.dequantize_4bit(layer["weight"], torch.bfloat16, backend="tiles")


def test_infinities_stay_where_they_are():
    weight, dequantised = four_bit(5, 64, torch.float32)
    x = torch.ones(3, 64)
    x[1, 7] = math.inf
    output = ops.linear_4bit(x, weight)
    assert torch.isfinite(output[[0, 2]]).all()
    assert torch.equal(torch.isfinite(output[1]), torch.isfinite(x[1] @ dequantised.T))


def test_a_width_that_no_kernel_of_ours_reads_is_left_to_bitsandbytes_and_said_once(caplog):
    weight, dense = four_bit(33, 70)
    x = random(64, 70, dtype=torch.bfloat16, seed=0)
    ops._say.cache_clear()
    with caplog.at_level(logging.WARNING, "pefttool_kernels.ops"):
        for _ in range(2):
            y = ops.linear_4bit(x, weight)
    assert error(y.detach(), x.detach().double() @ dense.double().t()) <= WORST[torch.bfloat16]
    (record,) = caplog.records
    assert "left to bitsandbytes: in_features 70 is not a multiple of 64" in record.getMessage()
    with pytest.raises(BackendError, match="in_features 70"):
        ops.linear_4bit(x, weight, backend="tiles")
