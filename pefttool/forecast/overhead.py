"""Memory that no tensor holds: the process, the driver's context, what the allocator rounds up or keeps."""

from __future__ import annotations

from dataclasses import dataclass

from pefttool.forecast.recorder import BLOCK, Estimate
from pefttool.setup.plan import Plan

#: A CUDA context with PyTorch's kernels loaded. Nobody can ask for it beforehand, and no card was there to measure one.
CUDA_CONTEXT = 450 << 20
#: PyTorch's default for cuBLAS, `:4096:2:16:8` in CUBLAS_WORKSPACE_CONFIG; on Hopper `:4096:8`, which is 32 MiB.
CUBLAS_WORKSPACE = (4096 * 2 + 16 * 8) << 10


@dataclass(frozen=True)
class Outside:
    """One such share. `source` says where the figure comes from, and whether anybody measured it."""

    name: str
    bytes: int
    source: str


def shares(plan: Plan, estimate: Estimate) -> tuple[Outside, ...]:
    """What the planned run takes on its device besides the tensors of `estimate`."""
    kind = plan.choice.device.partition(":")[0]
    if kind == "cuda":
        return (
            Outside("CUDA context", CUDA_CONTEXT, "assumed: no card was there to measure it"),
            Outside("cuBLAS workspace", CUBLAS_WORKSPACE, "PyTorch's default below Hopper"),
            Outside(
                "allocator rounding",
                estimate.rounded_bytes - estimate.peak_bytes,
                f"simulated: blocks are multiples of {BLOCK} bytes; fragmentation is not counted",
            ),
        )
    import psutil

    resident = int(psutil.Process().memory_info().rss)
    process = Outside("Python and libraries", resident, "measured: this process, which has no weights")
    if not plan.recipe.train.keep_best:
        return (process,)
    best = Outside("the best step's parameters", estimate.parts["adapter"], "calculated: train.keep_best copies them")
    return process, best
