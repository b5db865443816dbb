"""Does every backend that runs on this device compute the right numbers? Seconds on the CPU; nothing is timed.

Products with weights of every kind go through the operators, forward and backward, with a bias and a low-rank update,
and are compared with float64 (`reference`). Dequantised weights are compared with bitsandbytes' on the CPU, bit by
bit; the loss with PyTorch's own (`selftest_loss`). Memory is filled with NaN beforehand: a value that is left
unwritten cannot be a lucky copy of the right one.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pefttool_kernels import backends, dispatch, machine, ops
from pefttool_kernels.dispatch import BACKENDS, Direction, Machine
from pefttool_kernels.layout import FourBitWeight
from pefttool_kernels.selftest import loss
from pefttool_kernels.selftest.cases import DTYPES, KINDS, SHAPES, Case, Check, check, compute, error, make, worst

#: Direction of the product, what is checked, and which results that is.
PRODUCTS: tuple[tuple[Direction, str, tuple[str, ...]], ...] = (
    ("forward", "forward", ("y",)),
    ("backward", "backward", ("dx", "dbias")),
    ("backward", "adapter", ("da", "db")),
)
#: The gradients of A and B are sums in float32, whatever the product is in.
ALLOWED_ADAPTER = 1e-5


@dataclass(frozen=True)
class Verdict:
    """What the checks say of one backend. `ok` is None where it cannot run."""

    backend: str
    ok: bool | None
    text: str


def run(device: torch.device, every_tile: bool = False) -> list[Check]:
    """Checks of every backend on `device`; one that says why for a backend that cannot run there.

    `every_tile`: all the tiles of triton's kernels, not only those that a card chooses for these shapes. That compiles
    for minutes. In a process that is in the mode of Triton's interpreter, the tiles run on the CPU.
    """
    here = machine.of(device)
    checks: list[Check] = []
    with poisoned_memory(), wide_sums():
        for kind in KINDS:
            for dtype in DTYPES:
                cases = [make(kind, dtype, *shape).to(device) for shape in SHAPES]
                for backend in BACKENDS:
                    checks += _products(backend, cases, here)
                    checks += _dequantised(backend, cases, here)
                if every_tile and (here.triton_missing or machine.not_installed()) is None:
                    from pefttool_kernels.selftest import tiles

                    checks += tiles.run(cases, here)
        checks += loss.run(device)
    return [*checks, *_absent({found.backend for found in checks}, here)]


def _products(backend: str, cases: Sequence[Case], here: Machine) -> Iterator[Check]:
    """Nothing for a direction that the backend does not compute with these weights."""
    for direction, what, parts in PRODUCTS:
        if any(dispatch.refusal(backend, case.site(direction), here) for case in cases):
            continue

        def error_of(case: Case, parts: tuple[str, ...] = parts) -> float:
            results = compute(case, backend)
            return worst(error(results[part], case.truth[part]) for part in parts)

        if what != "forward":
            yield check(Check(backend, direction=what), cases, error_of, ALLOWED_ADAPTER if what == "adapter" else None)
            continue
        # Roundings are independent: their squares add.
        for times, group in _by_roundings(backend, cases).items():
            name = Check(backend, direction=what, what="" if times == 1 else "few rows")
            yield check(name, group, error_of, group[0].allowed * times**0.5)


def _by_roundings(backend: str, cases: Sequence[Case]) -> dict[int, list[Case]]:
    found: dict[int, list[Case]] = {}
    for case in cases:
        found.setdefault(backends.roundings(backend, case.x, case.weight, updated=True), []).append(case)
    return found


def _dequantised(backend: str, cases: Sequence[Case], here: Machine) -> Iterator[Check]:
    """The backends that write a whole 4-bit weight."""
    if backend not in ("dequantize", "bitsandbytes") or cases[0].operator != "linear_4bit":
        return
    if dispatch.refusal(backend, cases[0].site("forward"), here):
        return

    def error_of(case: Case) -> float:
        assert isinstance(case.weight, FourBitWeight)
        return case.share_that_differs(ops.dequantize_4bit(case.weight, case.x.dtype, backend))

    yield check(Check(backend, "dequantize_4bit"), cases, error_of, allowed=0.0)


def _absent(ran: Collection[str], here: Machine) -> Iterator[Check]:
    """Why a backend cannot compute even a plain product here."""
    m, n, k = SHAPES[0]
    plain = dispatch.Site("linear_4bit", "forward", m, n, k, torch.bfloat16)
    for backend in BACKENDS:
        if backend not in ran:
            yield Check(backend, skipped=dispatch.refusal(backend, plain, here))


def verdicts(checks: Sequence[Check]) -> list[Verdict]:
    """One for each backend, in their order."""
    named = dict.fromkeys((*BACKENDS, *(found.backend for found in checks)))
    grouped = [[found for found in checks if found.backend == name] for name in named]
    return [_verdict(group) for group in grouped if group]


def _verdict(checks: Sequence[Check]) -> Verdict:
    backend = checks[0].backend
    if checks[0].skipped is not None:
        return Verdict(backend, None, f"not here: {checks[0].skipped}")
    failed = [found for found in checks if not found.ok]
    if failed:
        first = failed[0]
        figures = first.problem or f"error {first.error:.1e}, allowed {first.allowed:.1e}"
        return Verdict(backend, False, f"WRONG in {len(failed)} of {len(checks)} checks: {first.label}: {figures}")
    closest = max(checks, key=lambda found: (found.error or 0.0) / (found.allowed or 1.0))
    figures = f"worst error {closest.error:.1e} of {closest.allowed:.1e} allowed ({closest.label})"
    return Verdict(backend, True, f"correct: {len(checks)} checks, {figures}")


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """PyTorch fills new memory with NaN, as it does in the mode of deterministic algorithms."""
    on, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():  # of algorithms that are not deterministic, which nobody asked for
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        torch.use_deterministic_algorithms(on, warn_only=warn_only)


@contextmanager
def wide_sums() -> Iterator[None]:
    """The vendor's library sums in float32 only, as it does where this is asked for: its choice is not what is tested.

    By default it may add up the parts of a long product in 16 bits.
    """
    settings = torch.backends.cuda.matmul
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    before = {name: getattr(settings, name) for name in names}
    for name in names:
        setattr(settings, name, False)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)
