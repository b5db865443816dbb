"""What a kernel became: compiled ahead of time for a card that is not here, and its machine code read back.

Counts are of one warp's instructions. A tensor core's instruction counts by its work, so that cards compare: 1 is one
m16n8k16 product, 4096 floating-point operations, which is HMMA.16816. HGMMA (sm_90) is issued by four warps together,
for m64: each has a quarter of it, so m64 nN k16 counts N / 8.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pefttool_kernels.triton.variants import Variant

WARP_SIZE = 32
MMA_WORK = 16 * 8 * 16  # multiplications of m16n8k16
WARPS_OF_A_GROUP = 4  # that issue an HGMMA together
#: HMMA's shape is written without separators: m16n8k16 is 16816.
HMMA_WORK = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8}
TENSOR_CORE = re.compile(r"(?:[A-Z]*MMA\b|UTC[A-Z]*MMA\b)")
WARP_PRODUCT = re.compile(r"HMMA\.(?P<shape>\d+)\.")
GROUP_PRODUCT = re.compile(r"HGMMA\.(?P<m>\d+)x(?P<n>\d+)x(?P<k>\d+)\.")

SECTION = re.compile(r"^\.text\.(?P<name>\S+):$")
LABEL = re.compile(r"^\s*(?P<label>\.L\w+):")
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)(?P<operands>[^;]*);")
TARGET = re.compile(r"`\((?P<label>\.L\w+)\)")
RESOURCES = re.compile(r"REG:(?P<registers>\d+) STACK:(?P<stack>\d+)")


class UnknownMachineCode(ValueError):
    """Machine code that cannot be counted; the message names what."""


@dataclass(frozen=True)
class Instruction:
    opcode: str  # with its suffixes: "LDGSTS.E.BYPASS.128"
    target: str | None = None  # the label that a branch jumps to


@dataclass(frozen=True)
class Function:
    """One kernel's machine code. `labels`: name -> index of the instruction that follows it."""

    instructions: Sequence[Instruction]
    labels: dict[str, int]


@dataclass(frozen=True)
class Report:
    """Figures of one compiled kernel. `body` is its main loop, or all of it if no loop has a product."""

    registers: int  # of a thread
    stack: int  # bytes of a thread
    spills: int  # loads and stores of local memory, in the whole kernel
    shared: int  # bytes of a program
    body: int  # instructions
    mma: float  # in the body, as m16n8k16
    tensor_core: tuple[str, ...]  # the names of those instructions, each once
    async_copies: int  # of 128 bits from global to shared memory, in the body
    wide_loads: int  # of 128 bits from global memory, in the body
    wide_stores: int  # of 128 bits to global memory, in the body
    ldmatrix: int  # in the body
    shuffles: int  # in the body
    barriers: int  # in the body

    @property
    def instructions_per_mma(self) -> float:
        """Infinite without tensor cores."""
        return self.body / self.mma if self.mma else float("inf")


def compile_variant(variant: Variant, capability: int) -> tuple[bytes, int]:
    """The cubin for a capability such as 89, and the bytes of shared memory that a program takes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.kernel.arg_names
    source = ASTSource(
        fn=variant.kernel,
        signature={name: variant.signature.get(name, "constexpr") for name in names},
        constexprs=variant.constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in variant.divisible},
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, **variant.options}
    compiled: Any = triton.compile(source, target=GPUTarget("cuda", capability, WARP_SIZE), options=options)
    return compiled.asm["cubin"], compiled.metadata.shared


def read(cubin: bytes, shared: int) -> Report:
    """The figures of a cubin that holds one kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        functions = parse(disassemble(Path(file.name)))
        resources = RESOURCES.search(_run("cuobjdump", "-res-usage", file.name))
    if len(functions) != 1 or resources is None:
        raise UnknownMachineCode(f"one kernel was expected, with its resources; found {sorted(functions)}")
    (function,) = functions.values()
    return summarise(function, int(resources["registers"]), int(resources["stack"]), shared)


def disassemble(cubin: Path) -> str:
    return _run("nvdisasm", "-c", str(cubin))


def extract(library: Path, capability: int, folder: Path) -> Path | None:
    """The cubin for a capability out of a shared library, into `folder`; None if the library has none."""
    _run("cuobjdump", "-xelf", f"sm_{capability}", str(library.resolve()), folder=folder)
    return next(iter(folder.glob(f"*.sm_{capability}.cubin")), None)


def _run(tool: str, *arguments: str, folder: Path | None = None) -> str:
    """What one of triton's own tools prints."""
    import triton

    path = getattr(triton.knobs.nvidia, tool).path
    return subprocess.run([path, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def parse(listing: str) -> dict[str, Function]:
    """nvdisasm's listing: mangled name -> machine code."""
    functions: dict[str, Function] = {}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if section := SECTION.match(line):
            instructions, labels = [], {}
            functions[section["name"]] = Function(instructions, labels)
        elif label := LABEL.match(line):
            labels[label["label"]] = len(instructions)
        elif found := INSTRUCTION.match(line):
            target = TARGET.search(found["operands"])
            instructions.append(Instruction(found["opcode"], target["label"] if target else None))
    return functions


def loops(function: Function) -> list[Sequence[Instruction]]:
    """What lies between a branch and the earlier place that it jumps to, both included. The trap at the end is none."""
    found = []
    for last, instruction in enumerate(function.instructions):
        if instruction.target is None or not instruction.opcode.startswith("BRA"):
            continue
        first = function.labels.get(instruction.target)
        if first is not None and first < last:
            found.append(function.instructions[first : last + 1])
    return found


def work(opcode: str) -> float:
    """How many m16n8k16 products a warp does by this instruction. UnknownMachineCode for another tensor core's."""
    if not TENSOR_CORE.match(opcode):
        return 0.0
    if group := GROUP_PRODUCT.match(opcode):
        return int(group["m"]) * int(group["n"]) * int(group["k"]) / WARPS_OF_A_GROUP / MMA_WORK
    product = WARP_PRODUCT.match(opcode)
    if product is None or product["shape"] not in HMMA_WORK:
        raise UnknownMachineCode(f"{opcode}: how much work this is is not known here")
    return HMMA_WORK[product["shape"]] / MMA_WORK


def main_loop(function: Function) -> Sequence[Instruction] | None:
    """The loop with the most products, the innermost of equals; None if no loop has any."""
    candidates = [(sum(work(item.opcode) for item in loop), -len(loop), loop) for loop in loops(function)]
    best = max(candidates, key=lambda candidate: candidate[:2], default=None)
    return best[2] if best and best[0] else None


def executed(function: Function) -> Sequence[Instruction]:
    """The whole kernel but what follows its last exit: a trap and padding."""
    exits = [index for index, item in enumerate(function.instructions) if item.opcode.startswith(("EXIT", "RET"))]
    return function.instructions[: exits[-1] + 1] if exits else function.instructions


def summarise(function: Function, registers: int, stack: int, shared: int) -> Report:
    body = [item.opcode for item in main_loop(function) or executed(function)]

    def count(*prefixes: str, suffix: str = "") -> int:
        return sum(opcode.startswith(prefixes) and opcode.endswith(suffix) for opcode in body)

    return Report(
        registers=registers,
        stack=stack,
        spills=sum(item.opcode.startswith(("STL", "LDL")) for item in function.instructions),
        shared=shared,
        body=len(body),
        mma=sum(map(work, body)),
        tensor_core=tuple(sorted({opcode for opcode in body if work(opcode)})),
        async_copies=count("LDGSTS.", suffix=".128") + count("UBLKCP", "UTMALDG"),
        wide_loads=sum(opcode.startswith("LDG.") and ".128" in opcode for opcode in body),
        wide_stores=sum(opcode.startswith("STG.") and ".128" in opcode for opcode in body),
        ldmatrix=count("LDSM"),
        shuffles=count("SHFL"),
        barriers=count("BAR."),
    )
