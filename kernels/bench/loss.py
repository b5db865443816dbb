"""The loss of a language model, chunked, and as everybody computes it, with every logit in float32: side by side.

python kernels/bench/loss.py                               SmolLM2's output layer on the CPU, in bfloat16
python kernels/bench/loss.py --vocabulary 128256 --hidden 4096 --tokens 512    Llama-3.1-8B's

kernels/bench/gpu.py measures it on a GPU, with everything else.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from gpu_record import statistics
from torch import Tensor
from torch.nn import functional

from pefttool_kernels.cross_entropy import linear_cross_entropy
from pefttool_kernels.timing import measure

OURS, NAIVE = "linear_cross_entropy", "naive"
LABEL = 22  # width of the table's first column
MIB = 1 << 20
MAX_TEXT = 300

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Result:
    """Forward and dX of one contestant: milliseconds, the most bytes beside the inputs, and its loss and gradient.

    `difference`: of its gradient from the naive one, relative Frobenius; both are in bfloat16.
    """

    contestant: str
    tokens: int
    vocabulary: int
    hidden: int
    times: dict[str, float] | None = None
    peak_bytes: int | None = None
    loss: float | None = None
    difference: float | None = None
    problem: str | None = None

    def record(self) -> dict[str, Any]:
        return asdict(self)


def naive(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(hidden, weight).float(), labels)


def chunked(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, weight, labels, reduction="mean")


def run(
    tokens: int, vocabulary: int, hidden: int, rounds: int, device: torch.device, dtype: torch.dtype
) -> list[Result]:
    """Both contestants; who raises (memory, first of all) is reported, and takes no further part."""
    torch.manual_seed(0)
    weight = torch.randn(vocabulary, hidden, device=device, dtype=dtype).mul_(0.02)
    x = torch.randn(tokens, hidden, device=device, dtype=dtype).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,), device=device)
    contestants: dict[str, Loss] = {NAIVE: naive, OURS: chunked}
    steps = {name: _step(loss, x, weight, labels) for name, loss in contestants.items()}
    results, expected = {}, None
    for name, step in steps.items():
        known = Result(name, tokens, vocabulary, hidden)
        try:
            before = _reset_peak(device)
            loss, dx = step()
            results[name] = replace(known, loss=float(loss.detach()), peak_bytes=_peak(device, before))
        except Exception as raised:  # a compiler's, a driver's, memory that is not there
            text = " ".join(f"{type(raised).__name__}: {raised}".split())
            results[name] = replace(known, problem=text[:MAX_TEXT])
            continue
        if expected is None and name == NAIVE:
            expected = dx
        elif expected is not None:
            difference = float((dx.float() - expected.float()).norm() / expected.float().norm())
            results[name] = replace(results[name], difference=difference)
    able = {name: step for name, step in steps.items() if results[name].problem is None}
    for name, values in measure.take_turns(able, device, rounds=rounds).items():
        results[name] = replace(results[name], times=statistics(values))
    return list(results.values())


def _step(loss: Loss, x: Tensor, weight: Tensor, labels: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    def step() -> tuple[Tensor, Tensor]:
        value = loss(x, weight, labels)
        (dx,) = torch.autograd.grad(value, x)
        return value, dx

    return step


def _reset_peak(device: torch.device) -> int:
    """Bytes that tensors take now; their peak starts anew."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device, before: int) -> int | None:
    """The most bytes that tensors took beyond `before`; unknown on the CPU."""
    return torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None


def header() -> str:
    """The names of the columns of `line`."""
    return f"{'':{LABEL}}{'tokens':>8}{'ms':>10}{'p10':>9}{'p90':>9}{'peak MiB':>10}{'loss':>10}{'dX differs':>12}"


def line(result: Result) -> str:
    """One contestant; "-" for what is not known."""
    times = result.times or {}
    cells = (
        (times.get("median"), 10, ".2f"),
        (times.get("p10"), 9, ".2f"),
        (times.get("p90"), 9, ".2f"),
        (None if result.peak_bytes is None else result.peak_bytes / MIB, 10, ".0f"),
        (result.loss, 10, ".5f"),
        (result.difference, 12, ".1e"),
    )
    text = "".join(f"{'-':>{width}}" if value is None else f"{value:>{width}{form}}" for value, width, form in cells)
    return f"{result.contestant:<{LABEL}}{result.tokens:>8}{text}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 256, 512, 1024, 2048])
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    print(f"cpu: {torch.get_num_threads()} threads, torch {torch.__version__}, bfloat16; forward and dX, taking turns")
    print(header())
    for tokens in arguments.tokens:
        sizes = (tokens, arguments.vocabulary, arguments.hidden)
        results = run(*sizes, arguments.rounds, torch.device("cpu"), torch.bfloat16)
        for result in results:
            print(line(result), flush=True)


if __name__ == "__main__":
    main()
