"""Compile every shipped kernel ahead of time for five kinds of card, and fail where the machine code breaks a limit.

python kernels/bench/gates.py                          everything that ships; the limits are in gates.toml
python kernels/bench/gates.py --only 'dequant*' --arch 89    some of it
python kernels/bench/gates.py --variants mine.py       what `variants()` in this file gives, too

Needs no GPU. What it shows is what the compiler made, not how fast that is. Exit status: 0, 1 for a broken limit, 2 if
nothing could be compiled.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import gate_library
import gate_limits
import sass
from gate_limits import Breach, Limits

if TYPE_CHECKING:
    from pefttool_kernels.triton.variants import Variant

WORKERS = 2
MESSAGE_LENGTH = 300
KIB = 1024
UNITS = "on each card: instructions per mma (w: per weight, i: in all), registers, KiB shared, programs a processor"


@dataclass(frozen=True)
class Compiled:
    """One variant on one kind of card: its figures, or why it did not compile."""

    variant: Variant
    arch: int
    result: sass.Report | str


def load_variants(extra: Path | None) -> list[Variant]:
    """What ships, and what `variants()` in the file `extra` gives."""
    from pefttool_kernels.triton import variants

    found = list(variants.shipped())
    if extra is not None:
        spec = importlib.util.spec_from_file_location(extra.stem, extra)
        if spec is None or spec.loader is None:
            raise SystemExit(f"error: --variants {extra}: not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[extra.stem] = module  # where triton looks a kernel's functions up
        spec.loader.exec_module(module)
        found += module.variants()
    return found


_variants: list[Variant] = []  # a worker's own: kernels do not travel between processes


def _start_worker(extra: Path | None) -> None:
    _variants.extend(load_variants(extra))


def _compile(task: tuple[int, int]) -> sass.Report | str:
    index, arch = task
    try:
        return sass.read(*sass.compile_variant(_variants[index], arch))
    except Exception as error:  # a compiler's, of any kind: a kernel that does not compile is a result
        return f"{type(error).__name__}: {' '.join(str(error).split())[:MESSAGE_LENGTH]}"


def compile_all(
    variants: Sequence[Variant], chosen: Sequence[int], archs: Sequence[int], extra: Path | None
) -> list[Compiled]:
    """Every chosen variant on every kind of card, in two processes."""
    tasks = [(index, arch) for index in chosen for arch in archs]
    pool = ProcessPoolExecutor(WORKERS, get_context("spawn"), _start_worker, (extra,))
    with pool:
        results = list(pool.map(_compile, tasks))
    return [Compiled(variants[index], arch, result) for (index, arch), result in zip(tasks, results, strict=True)]


def breaches(compiled: Sequence[Compiled], limits: Limits) -> list[Breach]:
    found = []
    for item in compiled:
        if isinstance(item.result, str):
            found.append(Breach(item.variant.name, item.arch, "the result", item.result, "machine code"))
        else:
            found += limits.check(item.variant, item.arch, item.result)
    return found


def compare(compiled: Sequence[Compiled], limits: Limits) -> tuple[list[Breach], list[str]]:
    """Where ours take no fewer instructions than the library's for the same tile; and a line on every comparison."""
    found: list[Breach] = []
    lines: list[str] = []
    library = limits.library
    rivals = [item for item in compiled if item.variant.family == library.family and _tile(item) in library.tiles]
    for arch in sorted({item.arch for item in rivals}):
        try:
            theirs = gate_library.instructions_per_mma(library, arch)
        except gate_library.MissingKernel as reason:
            lines.append(f"sm_{arch}: not compared with {gate_library.PACKAGE}: {reason}")
            continue
        for tile in library.tiles:
            ours = [item for item in rivals if item.arch == arch and _tile(item) == tile]
            lines += _comparison(arch, tile, ours, theirs)
            found += [breach for item in ours for breach in _not_below(item, theirs[tile, _dtype(item)])]
    return found, lines


def _tile(item: Compiled) -> str:
    return f"{item.variant.tile}x{item.variant.constants.get('BLOCK_K')}"


def _dtype(item: Compiled) -> str:
    return item.variant.signature["x"].removeprefix("*")


def _comparison(arch: int, tile: str, ours: Sequence[Compiled], theirs: gate_library.Loops) -> list[str]:
    costs = [item.result.instructions_per_mma for item in ours if isinstance(item.result, sass.Report)]
    if not costs:
        return []
    own = min(theirs[tile, _dtype(item)] for item in ours)
    return [f"sm_{arch} {tile}: ours {min(costs):.2f} to {max(costs):.2f}, {gate_library.PACKAGE}' {own:.2f}"]


def _not_below(item: Compiled, limit: float) -> list[Breach]:
    if isinstance(item.result, str) or item.result.instructions_per_mma < limit:
        return []
    cost = item.result.instructions_per_mma
    limit_text = f"below {gate_library.PACKAGE}' own {limit:.2f}"
    return [Breach(item.variant.name, item.arch, "instructions_per_mma", cost, limit_text)]


def table(compiled: Sequence[Compiled], limits: Limits) -> list[str]:
    """A line for each variant, a column for each kind of card."""
    archs = sorted({item.arch for item in compiled})
    rows: dict[str, dict[int, str]] = defaultdict(dict)
    for item in compiled:
        rows[item.variant.name][item.arch] = _cell(item, limits)
    width = max(map(len, rows))
    head = " " * width + "".join(f"{f'sm_{arch}':>19}" for arch in archs)
    return [UNITS, head, *(f"{name:<{width}}" + "".join(f"{row[a]:>19}" for a in archs) for name, row in rows.items())]


def _cell(item: Compiled, limits: Limits) -> str:
    if isinstance(item.result, str):
        return "does not compile"
    report = item.result
    if report.mma:
        cost = f"{report.instructions_per_mma:.2f}"
    elif item.variant.weights_per_thread:
        cost = f"{report.body / item.variant.weights_per_thread:.2f}w"
    else:
        cost = f"{report.body}i"
    programs = limits.cards[item.arch].programs(report, item.variant.num_warps)
    return f"{cost} {report.registers:3} {report.shared / KIB:3.0f} {programs:2}"


def parse_arguments(limits: Limits) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", type=int, default=sorted(limits.cards), choices=sorted(limits.cards))
    parser.add_argument("--only", default="*", metavar="PATTERN", help="variants whose name matches it")
    parser.add_argument("--variants", type=Path, metavar="FILE", help="a Python file with variants() -> list[Variant]")
    return parser.parse_args()


def main() -> int:
    limits = gate_limits.load()
    arguments = parse_arguments(limits)
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        print("error: TRITON_INTERPRET is set: kernels are interpreted, not compiled; unset it", file=sys.stderr)
        return 2
    if importlib.util.find_spec("triton") is None:
        print("error: triton is not installed (pip install triton, on Linux): nothing to compile with", file=sys.stderr)
        return 2
    start = time.monotonic()
    variants = load_variants(arguments.variants)
    chosen = [index for index, item in enumerate(variants) if fnmatch.fnmatch(item.name, arguments.only)]
    if not chosen:
        print(f"error: --only {arguments.only}: no variant has such a name", file=sys.stderr)
        return 2
    compiled = compile_all(variants, chosen, arguments.arch, arguments.variants)
    found = breaches(compiled, limits)
    worse, comparisons = compare(compiled, limits)
    found += worse
    exceptions = [f"exception: {rule}" for rule in limits.exceptions]
    print("\n".join(["", *table(compiled, limits), "", *comparisons, *exceptions, ""]))
    whole = len(chosen) == len(variants) and arguments.arch == sorted(limits.cards)
    stale = _stale(compiled, limits) if whole else []
    for complaint in [*found, *stale]:
        print(f"FAILED {complaint}")
    seconds = time.monotonic() - start
    print(f"{len(chosen)} variants, {len(compiled)} compilations, {len(found)} broken limits, {seconds:.0f} s")
    return 1 if found or stale else 0


def _stale(compiled: Sequence[Compiled], limits: Limits) -> list[str]:
    done = [(item.variant, item.arch, item.result) for item in compiled if isinstance(item.result, sass.Report)]
    return [f"an exception that nothing needs any more: {rule}" for rule in limits.stale_exceptions(done)]


if __name__ == "__main__":
    sys.exit(main())
