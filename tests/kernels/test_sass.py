"""Reading machine code: canned disassembly in, figures out. Nothing is compiled here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "kernels" / "bench"

#: As nvdisasm prints: a loop without products, the main loop, an outer branch around both, an exit, a trap, padding.
LISTING = """
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_SM89"
//--------------------- .text.product             --------------------------
	.section	.text.product,"ax",@progbits
.text.product:
        .type           product,@function
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   STL.64 [R1], R2 ;
.L_x_9:
        /*0020*/                   LDG.E.128 R4, [R2.64] ;
.L_x_0:
        /*0030*/                   LDL R5, [R1] ;
        /*0040*/               @P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0050*/                   LDGSTS.E.BYPASS.128 [R7+0x1000], [R2.64], !P2 ;
        /*0060*/              @!P1 LDGSTS.E.64 [R7+0x4000], [R2.64] ;
        /*0070*/                   LDSM.16.M88.4 R8, [R16] ;
        /*0080*/                   SHFL.IDX PT, R9, R20, R21, 0x1f ;
        /*0090*/                   HMMA.16816.F32.BF16 R24, R8.reuse, R12, R24 ;
        /*00a0*/                   HMMA.16816.F32.BF16 R28, R8, R14, R28 ;
        /*00b0*/                   HMMA.1688.F32 R28, R8, R14, R28 ;
        /*00c0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00d0*/                   BSYNC B0 ;
        /*00e0*/              @!P3 BRA `(.L_x_2) ;
        /*00f0*/                   BRA `(.L_x_1) ;
.L_x_2:
        /*0100*/              @UP0 BRA `(.L_x_9) ;
        /*0110*/                   STG.E.128 [R2.64], R24 ;
        /*0120*/                   EXIT ;
.L_x_3:
        /*0130*/                   BRA `(.L_x_3);
        /*0140*/                   NOP;
.L_x_4:

.text.copy:
        /*0000*/                   LDG.E.128.CONSTANT R4, [R2.64] ;
        /*0010*/               @P0 EXIT ;
        /*0020*/                   STG.E.128 [R2.64], R4 ;
        /*0030*/                   STG.E.64 [R2.64], R4 ;
        /*0040*/                   EXIT ;
.L_x_5:
        /*0050*/                   BRA `(.L_x_5);
        /*0060*/                   NOP;
"""


@pytest.fixture(scope="module")
def sass() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield importlib.import_module("sass")


def test_functions_and_their_labels(sass: ModuleType) -> None:
    functions = sass.parse(LISTING)
    assert {name: len(function.instructions) for name, function in functions.items()} == {"product": 21, "copy": 7}
    assert functions["product"].labels[".L_x_1"] == 5
    assert functions["product"].instructions[6].opcode == "LDGSTS.E.64"  # its predicate is no part of it
    assert functions["product"].instructions[4].target == ".L_x_0"


def test_the_main_loop_is_the_inner_one_with_products(sass: ModuleType) -> None:
    function = sass.parse(LISTING)["product"]
    assert [len(loop) for loop in sass.loops(function)] == [2, 11, 15]  # the trap jumps to itself: no loop
    loop = sass.main_loop(function)
    assert loop[0].opcode == "LDGSTS.E.BYPASS.128" and loop[-1].target == ".L_x_1"


def test_figures_of_a_product(sass: ModuleType) -> None:
    report = sass.summarise(sass.parse(LISTING)["product"], registers=203, stack=16, shared=58368)
    assert (report.registers, report.stack, report.shared) == (203, 16, 58368)
    assert report.spills == 2  # outside the main loop, too
    assert report.body == 11 and report.mma == 2.5 and report.instructions_per_mma == 4.4
    assert report.tensor_core == ("HMMA.16816.F32.BF16", "HMMA.1688.F32")
    assert (report.async_copies, report.ldmatrix, report.shuffles, report.barriers) == (1, 1, 1, 1)
    assert (report.wide_loads, report.wide_stores) == (0, 0)  # both are outside the loop


def test_figures_without_a_product_are_of_what_is_executed(sass: ModuleType) -> None:
    report = sass.summarise(sass.parse(LISTING)["copy"], registers=40, stack=0, shared=0)
    assert report.body == 5 and (report.wide_loads, report.wide_stores) == (1, 1)
    assert report.mma == 0 and report.tensor_core == () and report.instructions_per_mma == float("inf")


@pytest.mark.parametrize(
    ("opcode", "work"),
    [
        ("HMMA.16816.F32.BF16", 1.0),
        ("HMMA.16816.F32", 1.0),
        ("HMMA.1688.F32.TF32", 0.5),
        ("HGMMA.64x128x16.F32.BF16", 16.0),  # 64 x 128 x 16 by four warps: 16 of 16 x 8 x 16 for each
        ("HGMMA.64x64x16.F32", 8.0),
        ("FFMA", 0.0),
        ("IMAD.WIDE.U32", 0.0),
        ("LDSM.16.M88.4", 0.0),
    ],
)
def test_work_of_an_instruction(sass: ModuleType, opcode: str, work: float) -> None:
    assert sass.work(opcode) == work


@pytest.mark.parametrize("opcode", ["IMMA.16832.S8.S8", "QMMA.16832.F32", "UTCHMMA", "HMMA.16832.F32"])
def test_a_tensor_core_of_another_kind_is_not_passed_over(sass: ModuleType, opcode: str) -> None:
    with pytest.raises(sass.UnknownMachineCode, match=opcode):
        sass.work(opcode)


def test_bulk_copies_of_newer_cards_are_asynchronous_copies(sass: ModuleType) -> None:
    listing = LISTING.replace("LDGSTS.E.BYPASS.128 [R7+0x1000], [R2.64], !P2", "UTMALDG.2D [UR8], [UR4]")
    assert sass.summarise(sass.parse(listing)["product"], 1, 0, 0).async_copies == 1
