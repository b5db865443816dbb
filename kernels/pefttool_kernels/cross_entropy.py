"""Cross-entropy of a frozen output layer, a few tokens at a time: the logits [T, V] never exist.

    z = h W^T + bias    p = softmax(z)    loss = sum over trained tokens of logsumexp(z) - z_y
    dh = (p - onehot(y)) W = sum over v other than y of p_v W_v  -  (1 - p_y) W_y

Where a gradient is wanted it is computed in the forward pass, while a chunk's probabilities are at hand, and scaled by
the incoming gradient in the backward pass. The label's term is kept out of the wide product and added in float32: in
the narrow dtype 1 - p_y would be rounded, and with it the largest term of the gradient.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pefttool_kernels import low_rank, machine

#: torch's and transformers' convention for a label that does not count.
IGNORE_INDEX = -100
#: What a chunk of logits may take, by device type: on a CPU the second product should still find it in the last cache.
CHUNK_BYTES = {"cpu": 32 << 20}
OTHER_CHUNK_BYTES = 128 << 20
#: Rows of logits that are widened to float32 at a time; on a CPU within a core's own cache, if one row is.
BLOCK_BYTES = {"cpu": 1 << 20}
OTHER_BLOCK_BYTES = 32 << 20
#: Chunks are a multiple of this many rows, unless there are fewer: products come in tiles.
ROW_STEP = 16
#: Probabilities are multiplied by this before they are rounded: in float16 those below 6e-5 would lose digits, and of a
#: large vocabulary most are. A product that overflows would need weights larger than 63.
PROBABILITY_SCALE = {torch.float16: 1024.0}

INDEX_BYTES = 8

Reduction = Literal["sum", "mean"]


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: Reduction = "sum",
) -> Tensor:
    """Cross-entropy of hidden [T, H] weight [V, H]^T + bias [V] against labels [T] (int64): a float32 scalar.

    Rows whose label is `ignore_index` cost nothing. "mean" is over the others; without any it is NaN, as in torch, and
    "sum" is 0; gradients are zero then. Differentiable, once, in `hidden` only. Under autocast the product is computed
    in autocast's dtype. ValueError for a weight or bias that would need a gradient, for shapes and dtypes that do not
    fit, and for another reduction.
    """
    check(hidden, weight, labels, bias, reduction)
    hidden, weight, bias, gradient = prepared(hidden, weight, bias)
    total: Tensor
    total, _ = torch.ops.pefttool.linear_cross_entropy(hidden, weight, labels, bias, ignore_index, gradient)
    return reduced(total, labels, ignore_index, reduction)


def prepared(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, convert: bool = True
) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """(hidden, weight, bias, whether a gradient is wanted): in autocast's dtype, where it is on.

    Without `convert` weight and bias stay as they are, for whoever converts them part by part. ValueError for dtypes
    that do not fit.
    """
    automatic = torch.is_autocast_enabled(hidden.device.type)
    hidden = _autocast(hidden)
    if convert:
        weight, bias = _autocast(weight), None if bias is None else _autocast(bias)
    differs = weight.dtype != hidden.dtype or (bias is not None and bias.dtype != hidden.dtype)
    if differs and (convert or not automatic):
        raise ValueError(f"hidden is {hidden.dtype}, weight {weight.dtype}: convert one of them, or use autocast")
    return hidden, weight, bias, torch.is_grad_enabled() and hidden.requires_grad


def reduced(total: Tensor, labels: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """The sum of all losses, or their mean."""
    if reduction == "sum":
        return total
    count = (labels != ignore_index).sum()
    return torch.where(count > 0, total / count.clamp(min=1), torch.nan)


def check(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, reduction: str) -> None:
    """Raise ValueError for what `linear_cross_entropy` does not compute."""
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction {reduction!r}: 'sum' or 'mean' was expected")
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or labels.shape != hidden.shape[:1]:
        shapes = f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, labels {tuple(labels.shape)}"
        raise ValueError(f"{shapes}: [T, H], [V, H] and [T] were expected")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, which linear_cross_entropy does not compute: freeze it, or use"
                " torch's cross_entropy(linear(hidden, weight, bias), labels)"
            )


def _autocast(tensor: Tensor) -> Tensor:
    if not torch.is_autocast_enabled(tensor.device.type):
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def chunk_rows(tokens: int, vocabulary: int, itemsize: int, device_type: str = "cpu") -> int:
    """How many of `tokens` rows are multiplied at a time: chunks of equal size, within what a chunk may take."""
    budget = CHUNK_BYTES.get(device_type, OTHER_CHUNK_BYTES)
    most = max(ROW_STEP, budget // (vocabulary * itemsize) // ROW_STEP * ROW_STEP)
    chunks = -(-max(1, tokens) // most)
    even = -(-max(1, tokens) // chunks)
    return min(max(1, tokens), -(-even // ROW_STEP) * ROW_STEP)


def block_rows(rows: int, vocabulary: int, itemsize: int, device_type: str = "cpu") -> int:
    """How many of a chunk's `rows` go through the softmax at a time, in a dtype of `itemsize` bytes."""
    budget = BLOCK_BYTES.get(device_type, OTHER_BLOCK_BYTES)
    return min(rows, max(1, budget // (vocabulary * itemsize)))


def workspace_bytes(
    tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype, gradient: bool = True, device_type: str = "cpu"
) -> int:
    """The most that the operator allocates inside at a time, beyond inputs and outputs, for T = `tokens`.

    An upper limit: with some labels ignored, or in Triton's kernel, which needs no widened rows, it is less. What the
    vendor's product takes for itself is not in it, nor is what `_operator` returns: the gradient [T, H] in float32.
    """
    wide = torch.promote_types(dtype, torch.float32).itemsize
    rows = chunk_rows(tokens, vocabulary, dtype.itemsize, device_type)
    softmax = 2 * wide * (rows + block_rows(rows, vocabulary, wide, device_type) * vocabulary)
    narrow = dtype.itemsize if dtype.itemsize < wide and device_type != "cuda" else 0
    product = rows * hidden * (2 * wide + narrow) if gradient else 0
    chosen = tokens * INDEX_BYTES
    return chosen + rows * vocabulary * dtype.itemsize + max(softmax, product, rows * hidden * dtype.itemsize)


@torch.library.custom_op("pefttool::linear_cross_entropy", mutates_args=())
def _operator(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, ignore_index: int, gradient: bool
) -> tuple[Tensor, Tensor]:
    """(summed loss, its gradient for hidden [T, H] in float32, or [0, H] where none is wanted)."""
    with low_rank.without_autocast(hidden.device):
        trained = (labels != ignore_index).nonzero().squeeze(1)
        count = trained.shape[0]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=wide)
        dx = hidden.new_zeros((hidden.shape[0] if gradient else 0, hidden.shape[1]), dtype=wide)
        rows = chunk_rows(count, weight.shape[0], hidden.element_size(), hidden.device.type)
        logits = hidden.new_empty((min(rows, count), weight.shape[0]))
        for first in range(0, count, rows):
            last = min(count, first + rows)
            # A slice is a view; a list of rows is a copy, and is needed only where some are left out.
            chosen: Any = slice(first, last) if count == labels.shape[0] else trained[first:last]
            chunk, targets = logits[: last - first], labels[chosen]
            _multiply(hidden[chosen], weight, bias, chunk)
            losses, slopes = _softmax(chunk, targets)
            total += losses.sum()
            if gradient:
                dx[chosen] = _gradient(chunk, weight, targets, slopes)
        return total.float(), dx


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


def _softmax(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(losses [m], slopes [m] = p_y - 1) of logits [m, V], in float32.

    The logits are replaced by the probabilities, scaled, and 0 at the label.
    """
    scale = PROBABILITY_SCALE.get(logits.dtype, 1.0)
    if logits.is_cuda and machine.triton_missing(logits.device) is None:
        from pefttool_kernels.triton.cross_entropy import softmax_in_place

        return softmax_in_place(logits, labels, scale)
    wide = torch.promote_types(logits.dtype, torch.float32)
    rows = block_rows(logits.shape[0], logits.shape[1], wide.itemsize, logits.device.type)
    scratch = logits.new_empty((2, rows, logits.shape[1]), dtype=wide)
    losses, slopes = logits.new_empty((2, logits.shape[0]), dtype=wide)
    for first in range(0, logits.shape[0], rows):
        block = logits[first : first + rows]
        here = slice(first, first + block.shape[0])
        values, probabilities = scratch[:, : block.shape[0]]
        target = labels[here].unsqueeze(1)
        values.copy_(block)
        torch.softmax(values, 1, out=probabilities)
        # logsumexp(z) = max z - log(largest probability), which is 1 / sum(exp(z - max z)) and never underflows.
        # In this order a small loss keeps its digits.
        losses[here] = values.amax(1) - values.gather(1, target).squeeze(1) - probabilities.amax(1).log()
        slopes[here] = probabilities.gather(1, target).squeeze(1) - 1
        probabilities.scatter_(1, target, 0.0)
        if scale != 1.0:
            probabilities *= scale
        block.copy_(probabilities)
    return losses, slopes


def _gradient(probabilities: Tensor, weight: Tensor, labels: Tensor, slopes: Tensor) -> Tensor:
    """dh [m, H] in float32, from what `_softmax` left behind."""
    scale = PROBABILITY_SCALE.get(probabilities.dtype, 1.0)
    # A CPU's product comes rounded, which costs up to a fiftieth of the accuracy; a GPU's need not.
    if probabilities.is_cuda and probabilities.dtype != slopes.dtype:
        others = torch.mm(probabilities, weight, out_dtype=slopes.dtype)
    else:
        others = torch.mm(probabilities, weight).to(slopes.dtype)
    if scale != 1.0:
        others /= scale
    return others.addcmul_(weight[labels].to(slopes.dtype), slopes.unsqueeze(1))


@_operator.register_fake
def _fake(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, ignore_index: int, gradient: bool
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    dx = hidden.new_empty((hidden.shape[0] if gradient else 0, hidden.shape[1]), dtype=wide)
    return hidden.new_empty((), dtype=torch.float32), dx


def _stated(
    kind: str, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, ignore_index: int, gradient: bool
) -> int:
    """For whoever simulates this operator: `workspace_bytes`, from the labels where they have values."""
    tokens = labels.shape[0] if isinstance(labels, FakeTensor) else int((labels != ignore_index).sum())
    return workspace_bytes(tokens, hidden.shape[1], weight.shape[0], hidden.dtype, gradient, kind)


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """What is kept of an operator that gives (loss, its gradient for hidden)."""
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype


def backward(ctx: Any, loss_gradient: Tensor | None, dx_gradient: Tensor | None) -> tuple[Any, ...]:
    """The gradient that was made in the forward pass, scaled. RuntimeError for a second derivative."""
    if dx_gradient is not None:
        raise RuntimeError("linear_cross_entropy has no second derivative")
    (dx,) = ctx.saved_tensors
    dh = None if loss_gradient is None else (dx * loss_gradient).to(ctx.dtype)
    return dh, None, None, None, None, None


_operator.register_autograd(backward, setup_context=keep)
torch.ops.pefttool.linear_cross_entropy.workspace_bytes = _stated  # type: ignore[attr-defined]
