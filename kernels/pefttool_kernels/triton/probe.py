"""Can triton launch anything on a device? A kernel of one value, which needs all that every kernel needs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

VALUE = 7


@triton.jit
def probe_kernel(out, value):
    """Store `value` where `out` [1] points to."""
    tl.store(out, value)


def launch(device: torch.device) -> None:
    """Compile, launch, wait. Raises whatever a compiler, a driver or the system's own tools raise."""
    out = torch.zeros(1, dtype=torch.int32, device=device)
    with torch.cuda.device_of(out):
        probe_kernel[(1,)](out, VALUE)
    if int(out) != VALUE:
        raise RuntimeError(f"a kernel that stores {VALUE} stored {int(out)}")
