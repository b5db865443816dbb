"""Who computes a product: tables of sites and machines, each choice with its reason."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from pefttool_kernels.dispatch import (
    BACKENDS,
    FUSED_ROWS,
    NATIVE_ROWS,
    BackendError,
    Machine,
    Site,
    choose,
    choose_dequantize,
    refusal,
)

CPU = Machine("cpu")
OLD_CPU = Machine("cpu", native_missing="this CPU has no AVX512-BF16")
ADA = Machine("cuda", "card", (8, 9), 24, free_bytes=8 << 30)
TURING = replace(ADA, capability=(7, 5))
HOPPER = replace(ADA, capability=(9, 0))
MAC = Machine("mps", triton_missing="triton is not installed (on Linux it comes with a CUDA build of torch)")
NO_TRITON = replace(ADA, triton_missing="triton is not installed")
FULL = replace(ADA, free_bytes=100 << 20)
TUNED = replace(HOPPER, fused_rows={"forward": 256, "backward": 0})


def site(m: int = 512, **changes: Any) -> Site:
    known: dict[str, Any] = {"operator": "linear_4bit", "direction": "forward", "m": m, "n": 14336, "k": 4096}
    return Site(**{**known, "dtype": torch.bfloat16, **changes})


@pytest.mark.parametrize(
    ("machine", "where", "backend", "words"),
    [
        (CPU, site(512), "tiles", "stays in the cache"),
        (CPU, site(NATIVE_ROWS), "native", "read once"),
        (CPU, site(NATIVE_ROWS + 1), "tiles", "rows"),
        (OLD_CPU, site(1), "tiles", "no AVX512-BF16"),
        (CPU, site(1, dtype=torch.float32), "tiles", "float32"),
        (CPU, site(1, direction="backward"), "tiles", "forward product"),
        (CPU, site(1, operator="linear_8bit"), "tiles", "4-bit weights only"),
        (CPU, site(1, k=70), "bitsandbytes", "straddle rows"),
        (CPU, site(1, k=70, operator="linear_8bit"), "tiles", "serve 1 row, but"),
        (ADA, site(512), "triton", r"fused up to 1024 \(calculated\)"),
        (ADA, site(1024), "triton", "fused"),
        (ADA, site(1025), "dequantize", "vendor's library"),
        (ADA, site(1024, direction="backward"), "triton", "fused"),
        (ADA, site(4, needs_grad=False), "bitsandbytes", "single rows"),
        (ADA, site(5, needs_grad=False), "triton", "fused"),
        (ADA, site(4), "triton", "fused"),
        (ADA, site(512, dtype=torch.float32), "bitsandbytes", "float32"),
        (ADA, site(512, unreadable="the packed weights are not contiguous"), "bitsandbytes", "not contiguous"),
        (ADA, site(512, k=70), "bitsandbytes", "straddle rows"),
        (HOPPER, site(65), "dequantize", "more than 64"),
        (TURING, site(16), "dequantize", "7.5"),
        (NO_TRITON, site(16), "bitsandbytes", "triton is not installed"),
        (MAC, site(16), "bitsandbytes", "triton is not installed"),
        (FULL, site(4096), "triton", "112 MiB does not fit"),
        (TUNED, site(256), "triton", "measured on this card"),
        (TUNED, site(257), "dequantize", "measured on this card"),
        (TUNED, site(1, direction="backward"), "dequantize", "more than 0"),
        (replace(ADA, capability=(12, 1)), site(1024), "triton", "fused up to 1024"),
        (replace(ADA, capability=(10, 3)), site(65), "dequantize", "more than 64"),
    ],
)
def test_an_automatic_choice_has_a_reason(machine, where, backend, words):
    choice = choose(where, machine)
    assert choice.backend == backend
    assert re.search(words, choice.reason), choice.reason


MACHINES = [CPU, OLD_CPU, ADA, TURING, HOPPER, MAC, NO_TRITON, FULL, TUNED]
SITES = [
    site(m, direction=direction, operator=operator, dtype=dtype, k=k)
    for m in (1, 64, 65, 4096)
    for direction in ("forward", "backward")
    for operator in ("linear_4bit", "linear_8bit")
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for k in (4096, 70)
]


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_chosen_is_never_refused(machine):
    for where in SITES:
        choice = choose(where, machine)
        assert refusal(choice.backend, where, machine) is None
        assert choice.reason


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("machine", MACHINES)
def test_an_explicit_choice_works_or_raises(machine, backend):
    for where in SITES:
        if backend == "native" and where.direction == "backward":
            continue
        reason = refusal(backend, where, machine)
        if reason is None:
            assert choose(where, machine, backend).backend == backend
        else:
            with pytest.raises(BackendError) as raised:
                choose(where, machine, backend)
            assert reason in str(raised.value) and "choose " in str(raised.value)


def test_the_gradient_of_a_native_product_comes_from_tiles():
    assert choose(site(8, direction="backward"), CPU, "native").backend == "tiles"
    with pytest.raises(BackendError, match="runs on the CPU"):
        choose(site(8, direction="backward"), ADA, "native")


def test_a_whole_weight_is_dequantised_in_one_launch_where_triton_runs():
    assert choose_dequantize(site(), ADA).backend == "dequantize"
    assert choose_dequantize(site(), TURING).backend == "dequantize"
    assert choose_dequantize(site(), CPU).backend == "bitsandbytes"
    assert choose_dequantize(site(k=70), ADA).backend == "bitsandbytes"
    with pytest.raises(BackendError, match="cannot dequantise"):
        choose_dequantize(site(), CPU, "dequantize")


def test_every_architecture_that_is_compiled_for_has_a_limit():
    assert {(8, 0), (8, 6), (8, 9), (9, 0), (12, 0)} <= set(FUSED_ROWS)
