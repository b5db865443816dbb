"""Side-by-side timing: contestants take turns in one process, medians and ratios are compared, never absolute times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import median

import bitsandbytes
import torch
from torch import Tensor, nn

from pefttool_kernels.modules import fuse

Contestants = dict[str, Callable[[], object]]
OURS, LIBRARY, REPACKED, DENSE = "pefttool", "bitsandbytes", "bitsandbytes repacked", "dense"
#: bitsandbytes repacks weights of this many rows at a time, and raises for others.
REPACKED_ROWS = 32


@dataclass(frozen=True)
class Timing:
    """One product, timed: medians in milliseconds by contestant, and our relative error against float64."""

    kind: str  # nf4, fp4 or int8
    what: str  # forward, forward+backward, or evaluation (no gradients)
    n: int
    k: int
    m: int
    milliseconds: dict[str, float]
    error: float | None = None

    def ratio(self, other: str) -> float | None:
        """How many times faster than `other` we are."""
        theirs = self.milliseconds.get(other)
        return None if theirs is None else theirs / self.milliseconds[OURS]

    def record(self) -> dict[str, object]:
        """For a line of JSON."""
        return asdict(self)


def alternate(contestants: Contestants, seconds: float, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each. They take turns until `seconds` have passed, five rounds at least."""
    return {name: median(values) for name, values in take_turns(contestants, device, seconds).items()}


def take_turns(
    contestants: Contestants, device: torch.device, seconds: float = 0.0, rounds: int = 5
) -> dict[str, list[float]]:
    """Milliseconds of each, one value a round: `rounds` of them at least, and more until `seconds` have passed.

    Two rounds that are not counted come first. On a GPU its cache is written over before each call.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        for _ in range(2):
            _timed(run, device)
    end = time.perf_counter() + seconds
    count = 0
    while count < rounds or time.perf_counter() < end:
        for name, run in contestants.items():
            times[name].append(_timed(run, device))
        count += 1
    return times


def _timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        _flush(device)
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(stop)
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1000


_flushed: dict[torch.device, Tensor] = {}


def _flush(device: torch.device) -> None:
    """Write over the GPU's second-level cache, as the rest of a model would between two uses of a weight."""
    if device not in _flushed:
        _flushed[device] = torch.empty(256 << 20, dtype=torch.int8, device=device)
    _flushed[device].zero_()


def quantised(kind: str, weight: Tensor, bias: bool = False) -> nn.Module:
    """bitsandbytes' own layer holding `weight` [N, K], on its device, never to be repacked."""
    n, k = weight.shape
    layer: nn.Module
    if kind == "int8":
        layer = bitsandbytes.nn.Linear8bitLt(k, n, bias=bias, has_fp16_weights=False)
        layer.weight = bitsandbytes.nn.Int8Params(weight.cpu().clone(), requires_grad=False, has_fp16_weights=False)
    else:
        layer = bitsandbytes.nn.Linear4bit(k, n, bias=bias, compute_dtype=weight.dtype, quant_type=kind)
        parameter = bitsandbytes.nn.Params4bit(
            weight.cpu().clone(), requires_grad=False, quant_type=kind, compress_statistics=True, blocksize=64
        )
        layer.weight = parameter
        layer.support_avx512bf16_for_cpu = False
    return layer.to(weight.device)


def layers(kind: str, weight: Tensor) -> dict[str, nn.Module]:
    """The same quantised weight in our layer, in bitsandbytes' own, and in that repacked, where it does so."""
    ours = quantised(kind, weight)
    fuse(ours)
    found = {OURS: ours, LIBRARY: quantised(kind, weight)}
    repacks = kind != "int8" and weight.device.type == "cpu" and weight.shape[0] % REPACKED_ROWS == 0
    if repacks and bitsandbytes.functional.has_avx512bf16():
        repacked = quantised(kind, weight).eval()
        repacked.support_avx512bf16_for_cpu = True
        found[REPACKED] = repacked
    return found


def compare(
    kind: str, n: int, k: int, rows: list[int], device: torch.device, dtype: torch.dtype, seconds: float = 1.0
) -> Iterator[Timing]:
    """Forward, forward + backward and evaluation of one weight, for each number of rows."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(n, k, generator=generator) * 0.02).to(dtype).to(device)
    found = layers(kind, weight)
    repacked = found.pop(REPACKED, None)
    for m in rows:
        x = torch.randn(m, k, generator=generator).to(dtype).to(device).requires_grad_()
        g = torch.randn(m, n, generator=generator).to(dtype).to(device)
        training: Contestants = {name: _forward(layer, x) for name, layer in found.items()}
        training[DENSE] = lambda x=x: nn.functional.linear(x, weight)
        wrong = error(found[OURS], kind, x)
        yield Timing(kind, "forward", n, k, m, alternate(training, seconds, device), wrong)
        steps = {name: _step(run, x, g) for name, run in training.items()}
        yield Timing(kind, "forward+backward", n, k, m, alternate(steps, seconds, device))
        everyone = {**found, **({} if repacked is None else {REPACKED: repacked})}
        plain = x.detach()
        evaluation = {name: _evaluate(layer, plain) for name, layer in everyone.items()}
        yield Timing(kind, "evaluation", n, k, m, alternate(evaluation, seconds, device))


def error(layer: nn.Module, kind: str, x: Tensor) -> float:
    """Relative Frobenius error of the layer's output against float64 on bitsandbytes' dequantised weight."""
    from pefttool_kernels import backends
    from pefttool_kernels.modules import view

    def exact(tensor: Tensor) -> Tensor:
        """In float64, which Apple's GPUs do not have."""
        return (tensor.cpu() if tensor.device.type == "mps" else tensor).detach().double()

    truth = exact(x) @ exact(backends.dequantized(view(layer), x.dtype if kind != "int8" else torch.float32)).T
    return float((exact(layer(x)) - truth).norm() / truth.norm())


def _forward(layer: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: layer(x)


def _step(forward: Callable[[], object], x: Tensor, g: Tensor) -> Callable[[], object]:
    def step() -> None:
        output = forward()
        assert isinstance(output, Tensor)
        output.backward(g)
        x.grad = None

    return step


def _evaluate(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    def evaluate() -> object:
        with torch.no_grad():
            return layer(x)

    return evaluate
