"""Floors by arithmetic: what no kernel can be faster than, for each layer of a model, on each card. Calculated, not
measured: nothing here ran on a GPU, and no kernel reaches a floor.

python kernels/bench/roofline.py                     Llama-3.1-8B's layers on the cards below
python kernels/bench/roofline.py --card "RTX 3060" --rows 512 2048 --layer 4096x11008

A product of M rows with a weight [N, K] takes 2 M N K operations, reads its operands once and writes its result once.
Fused, the weight is read packed; otherwise one pass reads it packed and writes it dense, and the vendor's product reads
it dense. The backward product swaps N and K: the floors are the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from pefttool_kernels.layout import BLOCK, NESTED_BLOCK

OPERATIONS_PER_PRODUCT = 2  # one multiplication and one addition
DENSE_BYTES = 2  # of a value in bfloat16 or float16
FLOAT_BYTES = 4
#: Bytes that a weight of 4 bits takes with its scales: one byte for 64 weights, and a float32 for 256 of those bytes.
NESTED_BYTES = 0.5 + 1 / BLOCK + FLOAT_BYTES / (BLOCK * NESTED_BLOCK)
FLAT_BYTES = 0.5 + FLOAT_BYTES / BLOCK
PACKINGS = {"nested": NESTED_BYTES, "flat": FLAT_BYTES}


@dataclass(frozen=True)
class Card:
    """Peaks of one card. Tensor cores: bfloat16 operands, float32 sums, no sparsity, at the boost clock.

    On GeForce that is half of the number in advertisements, which sums in float16.
    """

    name: str
    processors: int
    clock: float  # Hz
    operations_per_clock: int  # of one multiprocessor's tensor cores
    bandwidth: float  # bytes a second

    @property
    def operations(self) -> float:
        """A second."""
        return self.processors * self.clock * self.operations_per_clock


#: Source: NVIDIA's specifications and architecture white papers. Laptops' clocks depend on the power they are given.
CARDS = (
    Card("RTX 3060", 28, 1.777e9, 512, 360e9),
    Card("RTX 3090", 82, 1.695e9, 512, 936e9),
    Card("RTX 4060 Laptop", 24, 2.1e9, 512, 256e9),
    Card("RTX 4090", 128, 2.52e9, 512, 1008e9),
    Card("RTX 5070 Laptop", 36, 2.2e9, 512, 384e9),
    Card("A100 40GB", 108, 1.41e9, 2048, 1555e9),
    Card("H100 SXM", 132, 1.83e9, 4096, 3350e9),
)
#: out_features, in_features of Llama-3.1-8B's linear layers.
LAYERS = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336))
ROWS = (16, 64, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Floor:
    """Seconds, at least, for M rows and a weight [N, K]."""

    fused: float
    dequantize: float  # the pass that writes a dense weight
    product: float  # with a dense weight

    @property
    def two_passes(self) -> float:
        return self.dequantize + self.product

    @property
    def gain(self) -> float:
        """How many times as fast as two passes a fused product is, if all of them run at their floors."""
        return self.two_passes / self.fused

    @property
    def break_even(self) -> float:
        """The share of the vendor's speed, with a ready dense weight, at which a fused product equals two passes."""
        return self.product / self.two_passes


def operations(m: int, n: int, k: int) -> int:
    return OPERATIONS_PER_PRODUCT * m * n * k


def moved_bytes(m: int, n: int, k: int, bytes_per_weight: float) -> float:
    """The weight, the rows that are read, and those that are written, once each."""
    return n * k * bytes_per_weight + DENSE_BYTES * m * (n + k)


def product_seconds(card: Card, m: int, n: int, k: int, bytes_per_weight: float) -> float:
    """The longer of computing and moving, which overlap at best."""
    return max(operations(m, n, k) / card.operations, moved_bytes(m, n, k, bytes_per_weight) / card.bandwidth)


def dequantize_seconds(card: Card, n: int, k: int, bytes_per_weight: float) -> float:
    return n * k * (bytes_per_weight + DENSE_BYTES) / card.bandwidth


def floor(card: Card, m: int, n: int, k: int, bytes_per_weight: float = NESTED_BYTES) -> Floor:
    return Floor(
        fused=product_seconds(card, m, n, k, bytes_per_weight),
        dequantize=dequantize_seconds(card, n, k, bytes_per_weight),
        product=product_seconds(card, m, n, k, DENSE_BYTES),
    )


def ridge(card: Card, bytes_per_weight: float = NESTED_BYTES) -> float:
    """Rows up to which reading the packed weight takes longer than computing with it."""
    return bytes_per_weight / card.bandwidth * card.operations / OPERATIONS_PER_PRODUCT


def dequantize_rows(card: Card, bytes_per_weight: float = NESTED_BYTES) -> float:
    """c: the pass that dequantises takes as long as computing c rows, so it adds the share c / M to a product."""
    return (bytes_per_weight + DENSE_BYTES) / card.bandwidth * card.operations / OPERATIONS_PER_PRODUCT


def table(card: Card, layers: Sequence[tuple[int, int]], rows: Sequence[int], packing: str) -> list[str]:
    """Lines of text. Times in milliseconds."""
    width = PACKINGS[packing]
    lines = [
        f"{card.name}: {card.operations / 1e12:.1f} TFLOP/s (bf16, float32 sums), {card.bandwidth / 1e9:.0f} GB/s;"
        f" reads and computes as long at M = {ridge(card, width):.0f};"
        f" dequantising costs {dequantize_rows(card, width):.0f} rows",
        f"{'NxK':>12} {'MB':>6} {'dense':>6} {'M':>5} {'GFLOP':>8} {'fused':>8} {'dequantise':>11} {'product':>8}"
        f" {'gain':>6} {'even at':>8}",
    ]
    for n, k in layers:
        for m in rows:
            at_least = floor(card, m, n, k, width)
            lines.append(
                f"{f'{n}x{k}':>12} {n * k * width / 1e6:6.1f} {n * k * DENSE_BYTES / 1e6:6.1f} {m:5}"
                f" {operations(m, n, k) / 1e9:8.1f} {at_least.fused * 1e3:8.3f} {at_least.dequantize * 1e3:11.3f}"
                f" {at_least.product * 1e3:8.3f} {at_least.gain:5.2f}x {at_least.break_even:8.0%}"
            )
    return lines


def _layer(text: str) -> tuple[int, int]:
    n, k = text.split("x")
    return int(n), int(k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [card.name for card in CARDS]
    parser.add_argument("--card", nargs="+", default=names, choices=names, metavar="NAME", help="; ".join(names))
    parser.add_argument("--layer", nargs="+", type=_layer, default=LAYERS, metavar="NxK")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, metavar="M")
    parser.add_argument("--packing", choices=list(PACKINGS), default="nested", help="how the weights' scales are kept")
    arguments = parser.parse_args()
    print(
        "Floors by arithmetic (calculated), in milliseconds; a kernel takes longer. `even at`: the share of the speed"
    )
    print(
        "of the vendor's product, with a ready dense weight, at which a fused one equals dequantising and that product."
    )
    for card in CARDS:
        if card.name in arguments.card:
            print("", *table(card, arguments.layer, arguments.rows, arguments.packing), sep="\n")


if __name__ == "__main__":
    main()
