"""The tiles that ship, as data, and which one a product gets. Chosen by arithmetic and compiled code: not timed yet.

Names as in a product of [m, k] by [k, n]: `m` rows, `n` columns of the output, `k` the sum. For the gradient of x the
output's columns are the weight's in_features, and the sum runs over its out_features.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """One tile of the output and how it is computed."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group_m: int = 8  # rows of tiles that are walked together, column by column

    @property
    def tile(self) -> str:
        return f"{self.block_m}x{self.block_n}"

    def programs(self, m: int, n: int) -> int:
        return -(-m // self.block_m) * -(-n // self.block_n)


LARGE = Config(128, 128, 64, num_warps=8, num_stages=3)
MEDIUM = Config(128, 64, 64, num_warps=4, num_stages=3)
SMALL = Config(64, 64, 64, num_warps=4, num_stages=4)
#: Few rows: the weight is read once, and the longer k hides the way to memory. Forward only: see `choose_config`.
FLAT = Config(16, 64, 128, num_warps=4, num_stages=3)

FORWARD = (LARGE, MEDIUM, SMALL, FLAT)
BACKWARD = (LARGE, MEDIUM, SMALL)

FLAT_ROWS = 32  # at most this many rows take the FLAT tile
SMALL_ROWS = 128
WAVES = 2  # the LARGE tile needs this many for every multiprocessor
#: Cards whose tensor cores wait for the other instructions, so that fewer of those beat more programs per processor.
DATACENTRE = ((8, 0), (9, 0), (10, 0))


def choose_config(
    m: int, n: int, capability: tuple[int, int], processors: int, choices: tuple[Config, ...] = FORWARD
) -> Config:
    """The tile for an output of [m, n] on a card with `processors` multiprocessors; one of `choices`."""
    if m <= FLAT_ROWS and FLAT in choices:
        return FLAT
    if m <= SMALL_ROWS:
        return SMALL
    divides = n % LARGE.block_n == 0  # otherwise half a tile is wasted, or masked
    if divides and capability in DATACENTRE and LARGE.programs(m, n) >= WAVES * processors:
        return LARGE
    return MEDIUM
