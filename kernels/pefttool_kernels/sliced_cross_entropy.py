"""Cross-entropy of a frozen output layer whose weight lies in host memory: it comes to the device slice by slice.

    z = h W^T + bias, a slice of the vocabulary at a time    first pass: max z, sum of exp(z - max z), z_y
                                                             second:     p = exp(z - max z) / sum, dh += p W

`cross_entropy` goes by tokens, with the weight at hand; here the weight is the dear one, so every slice of it is moved
once a pass, for all tokens. The label's term of the gradient is kept apart, as there.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pefttool_kernels import low_rank
from pefttool_kernels.cross_entropy import (
    CHUNK_BYTES,
    IGNORE_INDEX,
    INDEX_BYTES,
    OTHER_CHUNK_BYTES,
    PROBABILITY_SCALE,
    Reduction,
    backward,
    block_rows,
    check,
    keep,
    prepared,
    reduced,
)

#: What a slice of the weight may take on the device.
SLICE_BYTES = 64 << 20
#: Slices are a multiple of so many rows of the weight.
SLICE_STEP = 64
#: What lasts for every token: the largest logit, the sum, the label's logit, and what updates them.
PER_TOKEN = 6


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: Reduction = "sum",
) -> Tensor:
    """As `cross_entropy.linear_cross_entropy`, but `weight` and `bias` lie in host memory, or where `hidden` does.

    Equal to it but for the order of sums, and for labels outside the vocabulary: the loss and those tokens' gradients
    are NaN. At most one slice of the weight is on the device at a time.
    """
    check(hidden, weight, labels, bias, reduction)
    hidden, weight, bias, gradient = prepared(hidden, weight, bias, convert=False)
    total: Tensor
    total, _ = torch.ops.pefttool.sliced_cross_entropy(hidden, weight, labels, bias, ignore_index, gradient)
    return reduced(total, labels, ignore_index, reduction)


def slice_rows(tokens: int, hidden: int, vocabulary: int, itemsize: int, device_type: str = "cpu") -> int:
    """How many rows of the weight are multiplied at a time: they and their logits stay within what each may take."""
    logits = CHUNK_BYTES.get(device_type, OTHER_CHUNK_BYTES)
    most = min(SLICE_BYTES // (hidden * itemsize), logits // (max(1, tokens) * itemsize))
    return min(vocabulary, max(SLICE_STEP, most // SLICE_STEP * SLICE_STEP))


def workspace_bytes(
    tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype, gradient: bool = True, device_type: str = "cpu"
) -> int:
    """The most that the operator allocates inside at a time, beyond inputs and outputs, for T = `tokens`."""
    wide = torch.promote_types(dtype, torch.float32).itemsize
    rows = slice_rows(tokens, hidden, vocabulary, dtype.itemsize, device_type)
    moved = 0 if device_type == "cpu" else rows * hidden * dtype.itemsize
    chosen = tokens * (2 * INDEX_BYTES + hidden * dtype.itemsize + PER_TOKEN * wide)
    narrow = dtype.itemsize if dtype.itemsize < wide else 0
    softmax = wide * block_rows(tokens, rows, wide, device_type) * rows if narrow else 0
    product = tokens * hidden * (wide + narrow) if gradient else 0
    return moved + chosen + tokens * rows * dtype.itemsize + max(softmax, product)


@torch.library.custom_op("pefttool::sliced_cross_entropy", mutates_args=())
def _operator(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, ignore_index: int, gradient: bool
) -> tuple[Tensor, Tensor]:
    """(summed loss, its gradient for hidden [T, H] in float32, or [0, H] where none is wanted)."""
    with low_rank.without_autocast(hidden.device):
        trained = (labels != ignore_index).nonzero().squeeze(1)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        dx = hidden.new_zeros((hidden.shape[0] if gradient else 0, hidden.shape[1]), dtype=wide)
        if not trained.numel():  # nothing is multiplied, so that nothing need be moved
            return hidden.new_zeros((), dtype=torch.float32), dx
        x, targets = hidden[trained], labels[trained]
        top, sums, target = _statistics(x, weight, bias, targets, wide)
        total = (top - target + sums.log()).sum()
        if gradient:
            _gradient(x, weight, bias, targets, trained, (top, sums, target), dx)
        return total.float(), dx


def _slices(x: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(its first row, a slice of the weight where x is, the logits of all tokens [T, rows], in x's dtype)."""
    rows = slice_rows(x.shape[0], x.shape[1], weight.shape[0], x.element_size(), x.device.type)
    logits = x.new_empty((x.shape[0], rows))
    for first in range(0, weight.shape[0], rows):
        part = weight[first : first + rows].to(device=x.device, dtype=x.dtype, non_blocking=True)
        # The last slice may be narrower: what `out` is given must be of one piece.
        out = logits.view(-1)[: x.shape[0] * part.shape[0]].view(x.shape[0], part.shape[0])
        if bias is None:
            torch.mm(x, part.t(), out=out)
        else:
            here = bias[first : first + rows].to(device=x.device, dtype=x.dtype, non_blocking=True)
            torch.addmm(here, x, part.t(), out=out)
        yield first, part, out
        del part


def _blocks(logits: Tensor, wide: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """(rows, those logits in `wide`): a few at a time."""
    rows = block_rows(logits.shape[0], logits.shape[1], wide.itemsize, logits.device.type)
    for first in range(0, logits.shape[0], rows):
        here = slice(first, min(first + rows, logits.shape[0]))
        yield here, logits[here].to(wide)


def _statistics(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, wide: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token [T]: its largest logit, the sum of exp(logit - largest), its label's logit.

    The latter is NaN for a label that is in no slice.
    """
    top = x.new_full((x.shape[0],), -torch.inf, dtype=wide)
    sums, target = torch.zeros_like(top), torch.zeros_like(top)
    target.masked_fill_((targets < 0) | (targets >= weight.shape[0]), torch.nan)
    for first, part, logits in _slices(x, weight, bias):
        for here, values in _blocks(logits, wide):
            within, index = _within(targets[here], first, part.shape[0])
            target[here] += torch.where(within, values.gather(1, index).squeeze(1), 0.0)
            larger = torch.maximum(top[here], values.amax(1))
            values.sub_(larger.unsqueeze(1)).exp_()
            sums[here] = sums[here] * (top[here] - larger).exp() + values.sum(1)
            top[here] = larger
            del values
        del part
    return top, sums, target


def _within(targets: Tensor, first: int, rows: int) -> tuple[Tensor, Tensor]:
    """(which labels lie in this slice [m], where in it, or at its edge [m, 1])."""
    offset = targets - first
    return (offset >= 0) & (offset < rows), offset.clamp_(0, rows - 1).unsqueeze(1)


def _gradient(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    trained: Tensor,
    statistics: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
) -> None:
    """Add dh of the trained tokens to `out` [tokens, H], float32."""
    top, sums, target = statistics
    slopes = torch.expm1(target - top - sums.log())  # p_y - 1, to the last digit
    scale = PROBABILITY_SCALE.get(x.dtype, 1.0)
    for first, part, logits in _slices(x, weight, bias):
        for here, values in _blocks(logits, out.dtype):
            # In this order: a logsumexp would be rounded as coarsely as the largest logit.
            values.sub_(top[here].unsqueeze(1)).exp_().div_(sums[here].unsqueeze(1))
            within, index = _within(targets[here], first, part.shape[0])
            kept = torch.where(within, 0.0, values.gather(1, index).squeeze(1))
            values.scatter_(1, index, kept.unsqueeze(1))
            logits[here] = values.mul_(scale) if scale != 1.0 else values
            del values
        if x.is_cuda and x.dtype != out.dtype:
            others = torch.mm(logits, part, out_dtype=out.dtype)
        else:
            others = torch.mm(logits, part).to(out.dtype)
        if scale != 1.0:
            others /= scale
        out.index_add_(0, trained, others)
        del others
        mine = ((targets >= first) & (targets < first + part.shape[0])).nonzero().squeeze(1)
        labelled = part[targets[mine] - first].to(out.dtype).mul_(slopes[mine].unsqueeze(1))
        out.index_add_(0, trained[mine], labelled)
        del part, labelled
    out[trained[target.isnan()]] = torch.nan


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


_operator.register_autograd(backward, setup_context=keep)
torch.ops.pefttool.sliced_cross_entropy.workspace_bytes = _stated  # type: ignore[attr-defined]
