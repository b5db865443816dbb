"""bitsandbytes' own kernel for the same product, as its wheel carries it for a card: what ours are compared with."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import sass
from gate_limits import Library

PACKAGE = "bitsandbytes"
#: How the types and sizes of a template stand in a mangled name.
DTYPES = {"13__nv_bfloat16": "bf16", "6__half": "fp16"}
ARGUMENTS = re.compile(r"I(?P<dtype>13__nv_bfloat16|6__half)Li(?P<m>\d+)ELi(?P<n>\d+)ELi(?P<k>\d+)EE")

#: (tile with its step along k, "bf16" or "fp16") -> instructions per mma of the main loop.
Loops = Mapping[tuple[str, str], float]


class MissingKernel(LookupError):
    """There is nothing to compare with; the message says what is missing."""


def instructions_per_mma(library: Library, capability: int) -> Loops:
    """What the library's kernel takes, by tile and dtype. MissingKernel if the wheel has none for this capability."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingKernel(f"{PACKAGE} is not installed")
    path = Path(spec.origin).with_name(library.file)
    if not path.exists():
        raise MissingKernel(f"the installed {PACKAGE} has no {library.file}")
    with tempfile.TemporaryDirectory() as folder:
        cubin = sass.extract(path, capability, Path(folder))
        if cubin is None:
            raise MissingKernel(f"{library.file} has no code for sm_{capability}")
        functions = sass.parse(sass.disassemble(cubin))
    found = loops(functions, library.kernel)
    missing = {(tile, dtype) for tile in library.tiles for dtype in DTYPES.values()} - set(found)
    if missing:
        raise MissingKernel(f"{library.file} has no {library.kernel} for sm_{capability} with {sorted(missing)}")
    return found


def loops(functions: Mapping[str, sass.Function], kernel: str) -> Loops:
    """Instructions per mma of every instance of one kernel that has a loop of products."""
    found = {}
    for name, function in functions.items():
        arguments = ARGUMENTS.search(name)
        loop = sass.main_loop(function) if arguments and kernel in name else None
        if arguments and loop:
            tile = f"{arguments['m']}x{arguments['n']}x{arguments['k']}"
            found[tile, DTYPES[arguments["dtype"]]] = len(loop) / sum(sass.work(item.opcode) for item in loop)
    return found
