"""Tiles and compiled variants: what a card gets, and that what is compiled ahead of time is what is launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pefttool_kernels.layout import EightBitWeight, FourBitWeight
from pefttool_kernels.triton import _launch, backward_4bit, cross_entropy, dequantize, eight_bit, forward_4bit
from pefttool_kernels.triton.configs import BACKWARD, FLAT, FORWARD, LARGE, MEDIUM, SMALL, Config, choose_config
from pefttool_kernels.triton.variants import NEAT, Variant, shipped

ROWS = 3
RANK = 16
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TYPES = {**{dtype: f"*{name}" for name, dtype in DTYPES.items()}, torch.int32: "*i32", torch.int64: "*i64"}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@pytest.mark.parametrize(
    ("m", "n", "capability", "processors", "expected"),
    [
        (1, 4096, (8, 9), 24, FLAT),
        (32, 4096, (8, 9), 24, FLAT),
        (33, 4096, (8, 9), 24, SMALL),
        (129, 4096, (8, 9), 24, MEDIUM),
        (4096, 4096, (8, 9), 24, MEDIUM),
        (4096, 4096, (8, 0), 108, LARGE),
        (512, 1024, (8, 0), 108, MEDIUM),  # 32 large tiles would leave most of the card idle
        (4096, 14336 + 64, (9, 0), 132, MEDIUM),  # a large tile would be half empty
    ],
)
def test_choice_of_a_tile(m: int, n: int, capability: tuple[int, int], processors: int, expected: Config) -> None:
    assert choose_config(m, n, capability, processors) == expected


def test_few_rows_backward_take_a_tile_that_ships_backward() -> None:
    assert choose_config(1, 4096, (8, 9), 24, BACKWARD) == SMALL


def test_rows_that_no_whole_copy_fits_take_the_small_tile() -> None:
    assert _launch.config_for(torch.zeros(500, 33), 4096, BACKWARD) == SMALL


def test_masks_are_left_out_only_where_nothing_lies_outside() -> None:
    """What an unmasked load reads beyond the edge is not stored: no result shows it, only a card's memory fault."""
    assert forward_4bit.constants(FLAT, 256)["EVEN_K"] and not forward_4bit.constants(FLAT, 192)["EVEN_K"]
    assert eight_bit.forward_constants(FLAT, 256)["EVEN_K"] and not eight_bit.forward_constants(FLAT, 192)["EVEN_K"]
    for constants in (backward_4bit.constants, eight_bit.backward_constants):
        assert constants(LARGE, 64, 256)["EVEN"]
        assert not constants(LARGE, 64, 192)["EVEN"]
        assert not constants(LARGE, 65, 256)["EVEN"]


class Recorder:
    """Stands in for a kernel and keeps the arguments of its launches."""

    def __init__(self) -> None:
        self.launches: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda **arguments: self.launches.append(arguments)


def four_bits(nested: bool) -> FourBitWeight:
    """A weight of zeros, NEAT by NEAT: only its shapes and dtypes matter."""
    blocks = NEAT * NEAT // 64
    packed = torch.zeros(NEAT * NEAT // 2, dtype=torch.uint8)
    shape = (NEAT, NEAT, "nf4")
    if not nested:
        return FourBitWeight(packed, torch.zeros(blocks), torch.zeros(16), None, None, None, *shape)
    outer = (torch.zeros(blocks // 256), torch.zeros(256), torch.zeros(()))
    return FourBitWeight(packed, torch.zeros(blocks, dtype=torch.uint8), torch.zeros(16), *outer, *shape)


def launched(monkeypatch: pytest.MonkeyPatch, variant: Variant, dtype: torch.dtype, config: Config) -> dict[str, Any]:
    """The arguments with which the launcher launches the variant's kernel."""
    kernel = Recorder()
    x = torch.zeros(ROWS, NEAT, dtype=dtype)
    bias = torch.zeros(NEAT, dtype=dtype)
    left = torch.zeros(ROWS, RANK, dtype=dtype)
    below, beside = torch.zeros(NEAT, RANK, dtype=dtype), torch.zeros(RANK, NEAT, dtype=dtype)
    eight = EightBitWeight(torch.zeros(NEAT, NEAT, dtype=torch.int8), torch.zeros(NEAT))
    if variant.family == "forward_4bit":
        monkeypatch.setattr(forward_4bit, "forward_4bit_kernel", kernel)
        forward_4bit.linear_4bit(x, four_bits(variant.nested), bias, left, below, config)
    elif variant.family == "backward_4bit":
        monkeypatch.setattr(backward_4bit, "backward_4bit_kernel", kernel)
        backward_4bit.linear_4bit_dx(x, four_bits(variant.nested), left, beside, config)
    elif variant.family == "dequantize_4bit":
        monkeypatch.setattr(dequantize, "dequantize_4bit_kernel", kernel)
        dequantize.dequantize_4bit(four_bits(variant.nested), dtype)
    elif variant.family == "forward_8bit":
        monkeypatch.setattr(eight_bit, "forward_8bit_kernel", kernel)
        eight_bit.linear_8bit(x, eight, bias, left, below, config)
    elif variant.family == "cross_entropy":
        monkeypatch.setattr(cross_entropy, "cross_entropy_kernel", kernel)
        cross_entropy.softmax_in_place(x, torch.zeros(ROWS, dtype=torch.int64))
    else:
        monkeypatch.setattr(eight_bit, "backward_8bit_kernel", kernel)
        monkeypatch.setattr(eight_bit, "scale_gradient_kernel", kernel)
        eight_bit.linear_8bit_dx(x, eight, left, beside, config)
        return kernel.launches[0 if variant.family == "scale_gradient_8bit" else 1]
    return kernel.launches[-1]


def shipped_and_tile() -> Iterator[Any]:
    for variant in shipped():
        if variant.family == "probe":  # launched with triton's own defaults: tests/kernels/test_triton_dequantize.py
            continue
        matches = [config for config in FORWARD if config.tile == variant.tile]
        yield pytest.param(variant, matches[0] if matches else FLAT, id=variant.name.replace(" ", "-"))


@pytest.mark.parametrize(("variant", "config"), list(shipped_and_tile()))
def test_a_variant_is_what_is_launched(monkeypatch: pytest.MonkeyPatch, variant: Variant, config: Config) -> None:
    (dtype,) = (dtype for name, dtype in DTYPES.items() if name in variant.name.split())
    arguments = launched(monkeypatch, variant, dtype, config)
    assert {name: arguments.pop(name) for name in OPTIONS} == {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        **variant.options,
    }
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    rest = {name: value for name, value in arguments.items() if name not in tensors}
    sizes = {name: value for name, value in rest.items() if name not in variant.constants}
    assert {name: value for name, value in rest.items() if name not in sizes} == variant.constants
    assert {name: TYPES[tensor.dtype] for name, tensor in tensors.items()} == {
        name: kind for name, kind in variant.signature.items() if kind.startswith("*")
    }
    assert {name: "fp32" if isinstance(value, float) else "i32" for name, value in sizes.items()} == {
        name: kind for name, kind in variant.signature.items() if not kind.startswith("*")
    }
    assert all(value % 16 == 0 for name, value in sizes.items() if name in variant.divisible)
    assert list(variant.kernel.arg_names) and set(arguments) == set(variant.kernel.arg_names)


def test_every_tile_ships_in_every_kind() -> None:
    count = len(FORWARD) * 2 * 2 + len(BACKWARD) * 2 * 2 + 2 * 2 + len(FORWARD) * 2 + len(BACKWARD) * 2
    count += 2 + 3 + 1  # a gradient's scaling, the loss, the probe
    assert len({variant.name for variant in shipped()}) == len(shipped()) == count
