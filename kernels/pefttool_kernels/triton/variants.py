"""Every kernel that ships, as it is launched on a card: what an ahead-of-time compiler needs to build it without one.

The launchers' own functions give the constants, for a weight of NEAT by NEAT; see `Variant`. Nothing here compiles.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pefttool_kernels.triton import backward_4bit, cross_entropy, dequantize, eight_bit, forward_4bit, probe
from pefttool_kernels.triton._launch import OPTIONS
from pefttool_kernels.triton._tl import CODES_PER_WORD
from pefttool_kernels.triton.configs import BACKWARD, FORWARD, Config

Family = Literal[
    "forward_4bit",
    "backward_4bit",
    "dequantize_4bit",
    "forward_8bit",
    "backward_8bit",
    "scale_gradient_8bit",
    "cross_entropy",
    "probe",
]

NEAT = 4096  # in_features and out_features that every tile divides, as in most models
THREADS_PER_WARP = 32
DTYPES = {"bf16": "*bf16", "fp16": "*fp16"}
PRODUCT_SIZES = {"m": "i32", "n": "i32", "k": "i32", "rank": "i32"}
#: Multiples of 16 for NEAT weights and a rank of 16; m is never specialised.
PRODUCT_DIVISIBLE = ("n", "k", "rank")


@dataclass(frozen=True)
class Variant:
    """One compilation of one kernel."""

    family: Family
    name: str
    kernel: Any  # triton's JITFunction
    signature: dict[str, str]  # argument -> triton's type, for what is given at run time
    constants: dict[str, Any]  # argument -> value, None for an absent tensor
    divisible: tuple[str, ...]  # arguments that are multiples of 16
    num_warps: int
    num_stages: int
    tile: str
    weights_per_thread: int  # that one thread dequantises in a step of the loop; for dequantize_4bit, in all; or 0
    nested: bool = False
    options: dict[str, Any] = field(default_factory=lambda: dict(OPTIONS))


def shipped() -> list[Variant]:
    """Every tile, dtype and kind of scales, with the epilogues."""
    products = (_forward_4bit, _backward_4bit, _forward_8bit, _backward_8bit)
    return [
        item
        for family in (*products, _dequantize_4bit, _scale_gradient_8bit, _cross_entropy, _probe)
        for item in family()
    ]


def _scales(nested: bool) -> tuple[dict[str, str], dict[str, None]]:
    """Signature and constants of the scales' arguments."""
    if nested:
        return {"absmax": "*i32", "nested_absmax": "*fp32", "nested_code": "*fp32", "offset": "*fp32"}, {}
    return {"absmax": "*fp32"}, {"nested_absmax": None, "nested_code": None, "offset": None}


def _product(
    family: Family,
    kernel: Any,
    config: Config,
    dtype: str,
    pointers: dict[str, str],
    constants: dict[str, Any],
    nested: bool = False,
) -> Variant:
    kind = " nested" if nested else " flat" if "nested_absmax" in constants else ""
    weights = config.block_n * config.block_k
    return Variant(
        family=family,
        name=f"{family} {config.tile}x{config.block_k} w{config.num_warps} s{config.num_stages} {dtype}{kind}",
        kernel=kernel,
        signature={**pointers, **PRODUCT_SIZES},
        constants=constants,
        divisible=(*pointers, *PRODUCT_DIVISIBLE),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        tile=config.tile,
        weights_per_thread=weights // (THREADS_PER_WARP * config.num_warps),
        nested=nested,
    )


def _forward_4bit() -> Iterator[Variant]:
    for config, (dtype, pointer), nested in itertools.product(FORWARD, DTYPES.items(), (False, True)):
        scales, absent = _scales(nested)
        operands = {name: pointer for name in ("x", "u", "lora_b", "bias", "y")}
        yield _product(
            "forward_4bit",
            forward_4bit.forward_4bit_kernel,
            config,
            dtype,
            {**operands, "words": "*i32", "code": "*fp32", **scales},
            {**absent, **forward_4bit.constants(config, NEAT)},
            nested,
        )


def _backward_4bit() -> Iterator[Variant]:
    for config, (dtype, pointer), nested in itertools.product(BACKWARD, DTYPES.items(), (False, True)):
        scales, absent = _scales(nested)
        operands = {name: pointer for name in ("g", "v", "lora_a", "dx")}
        yield _product(
            "backward_4bit",
            backward_4bit.backward_4bit_kernel,
            config,
            dtype,
            {**operands, "words": "*i32", "code": "*fp32", **scales},
            {**absent, **backward_4bit.constants(config, NEAT, NEAT)},
            nested,
        )


def _forward_8bit() -> Iterator[Variant]:
    for config, (dtype, pointer) in itertools.product(FORWARD, DTYPES.items()):
        operands = {name: pointer for name in ("x", "u", "lora_b", "bias", "y")}
        yield _product(
            "forward_8bit",
            eight_bit.forward_8bit_kernel,
            config,
            dtype,
            {**operands, "words": "*i32", "scales": "*fp32"},
            eight_bit.forward_constants(config, NEAT),
        )


def _backward_8bit() -> Iterator[Variant]:
    for config, (dtype, pointer) in itertools.product(BACKWARD, DTYPES.items()):
        operands = {name: pointer for name in ("v", "lora_a", "dx")}
        yield _product(
            "backward_8bit",
            eight_bit.backward_8bit_kernel,
            config,
            dtype,
            {**operands, "scaled": "*fp16", "powers": "*fp32", "words": "*i32"},
            eight_bit.backward_constants(config, NEAT, NEAT),
        )


def _dequantize_4bit() -> Iterator[Variant]:
    for (dtype, pointer), nested in itertools.product(DTYPES.items(), (False, True)):
        scales, absent = _scales(nested)
        pointers = {"words": "*i32", "code": "*fp32", **scales, "out": pointer}
        weights = dequantize.WORDS_PER_PROGRAM * CODES_PER_WORD.value
        yield Variant(
            family="dequantize_4bit",
            name=f"dequantize_4bit {dtype} {'nested' if nested else 'flat'}",
            kernel=dequantize.dequantize_4bit_kernel,
            signature={**pointers, "first_block": "i32", "blocks": "i32"},
            constants={**absent, **dequantize.constants()},
            divisible=tuple(pointers),
            num_warps=dequantize.NUM_WARPS,
            num_stages=dequantize.NUM_STAGES,
            tile=str(dequantize.WORDS_PER_PROGRAM),
            weights_per_thread=weights // (THREADS_PER_WARP * dequantize.NUM_WARPS),
            nested=nested,
        )


def _scale_gradient_8bit() -> Iterator[Variant]:
    for dtype, pointer in DTYPES.items():
        pointers = {"g": pointer, "scales": "*fp32", "scaled": "*fp16", "powers": "*fp32"}
        yield Variant(
            family="scale_gradient_8bit",
            name=f"scale_gradient_8bit {dtype}",
            kernel=eight_bit.scale_gradient_kernel,
            signature={**pointers, "n": "i32"},
            constants=eight_bit.scaling_constants(),
            divisible=(*pointers, "n"),
            num_warps=eight_bit.SCALING_WARPS,
            num_stages=eight_bit.SCALING_STAGES,
            tile=str(eight_bit.SCALING_BLOCK),
            weights_per_thread=0,
        )


def _cross_entropy() -> Iterator[Variant]:
    for dtype, pointer in {**DTYPES, "fp32": "*fp32"}.items():
        pointers = {"logits": pointer, "labels": "*i64", "losses": "*fp32", "slopes": "*fp32"}
        yield Variant(
            family="cross_entropy",
            name=f"cross_entropy {dtype}",
            kernel=cross_entropy.cross_entropy_kernel,
            signature={**pointers, "vocabulary": "i32", "scale": "fp32"},
            constants=cross_entropy.constants(),
            divisible=(*pointers, "vocabulary"),
            num_warps=cross_entropy.NUM_WARPS,
            num_stages=cross_entropy.NUM_STAGES,
            tile=str(cross_entropy.BLOCK),
            weights_per_thread=0,
        )


def _probe() -> Iterator[Variant]:
    yield Variant(
        family="probe",
        name="probe",
        kernel=probe.probe_kernel,
        signature={"out": "*i32", "value": "i32"},
        constants={},
        divisible=("out",),
        num_warps=4,
        num_stages=3,
        tile="1",
        weights_per_thread=0,
    )
