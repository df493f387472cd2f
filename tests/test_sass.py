"""Machine code is read as it is meant: what counts of a main loop, and what does not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
if not SCRIPTS.exists():
    pytest.skip("needs the source tree", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

import sass  # noqa: E402

# A loop over 16-byte vectors of 2-byte elements. On the way it may add an operand, loaded by vectors, and may take a
# piece of work or leave it. A loop over single elements follows.
LISTING = """
\t\tFunction : kernel
\t.headerflags\t@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;    /* 0x00000a00ff017b82 */
                                                             /* 0x000fe40000000800 */
        /*0010*/                   BSSY B0, 0x00d0 ;         /* 0x0 */
        /*0020*/                   LDG.E.128.CONSTANT R4, desc[UR4][R16.64] ;  /* 0x0 */
        /*0030*/              @!P1 BRA 0x0060 ;              /* 0x0 */
        /*0040*/                   LDG.E.128 R8, desc[UR4][R18.64] ;  /* 0x0 */
        /*0050*/                   FADD R4, R4, R8 ;         /* 0x0 */
        /*0060*/               @P2 BRA 0x0090 ;              /* 0x0 */
        /*0070*/                   IMAD.WIDE.U32 R12, R9, -0x2daee0ad, RZ ;  /* 0x0 */
        /*0080*/                   LOP3.LUT R3, R3, R17, R18, 0x96, !PT ;  /* 0x0 */
        /*0090*/                   IMAD.MOV.U32 R5, RZ, RZ, R4 ;  /* 0x0 */
        /*00a0*/                   STG.E.128 desc[UR4][R20.64], R4 ;  /* 0x0 */
        /*00b0*/              @!P3 BRA 0x0020 ;              /* 0x0 */
        /*00c0*/                   BSYNC B0 ;                /* 0x0 */
        /*00d0*/                   LDG.E.U16 R6, desc[UR4][R22.64] ;  /* 0x0 */
        /*00e0*/                   STG.E.U16 desc[UR4][R22.64], R6 ;  /* 0x0 */
        /*00f0*/               @P0 BRA 0x00d0 ;              /* 0x0 */
        /*0100*/                   EXIT ;                    /* 0x0 */
        /*0110*/                   BRA 0x110;                /* 0x0 */
"""


def code(listing: str = LISTING) -> list[sass.Instruction]:
    (found,) = sass.functions(listing).values()
    return found


def test_every_instruction_is_read() -> None:
    assert len(code()) == 18
    branch = code()[3]
    assert (branch.address, branch.predicate, branch.opcode, branch.target) == (0x30, "@!P1", "BRA", 0x60)


def test_the_longest_way_that_moves_just_the_bytes_of_an_element_counts() -> None:
    loop = sass.main_loop(code(), loads=2, stores=2)
    # Without the operand at 0x40, with the work at 0x70: eight instructions, of which two are arithmetic of integers.
    assert loop == sass.MainLoop(
        elements=8, loaded=16, stored=16, cost=sass.Cost(8, integer=2, wide_loads=1, wide_stores=1, until_loaded=1)
    )


def test_with_its_operand_it_is_another_loop() -> None:
    loop = sass.main_loop(code(), loads=4, stores=2)
    assert loop == sass.MainLoop(
        elements=8, loaded=32, stored=16, cost=sass.Cost(10, integer=2, wide_loads=2, wide_stores=1, until_loaded=3)
    )


def test_a_loop_that_only_reads_counts_by_what_it_reads() -> None:
    reads = LISTING.replace("STG.E.128 desc[UR4][R20.64], R4", "DFMA R4, R4, R4, R4")
    loop = sass.main_loop(code(reads), loads=4, stores=0)
    assert loop == sass.MainLoop(8, 32, 0, sass.Cost(10, integer=2, double=1, wide_loads=2, until_loaded=3))


def test_a_loop_that_only_reads_is_known_by_its_doubles() -> None:
    reads = LISTING.replace("STG.E.128 desc[UR4][R20.64], R4", "DFMA R4, R4, R4, R4")
    loop = sass.main_loop(code(reads), loads=16, stores=0, doubles=1)
    assert loop is not None and loop.elements == 1
    assert sass.main_loop(code(reads), loads=8, stores=0, doubles=1) is None


@pytest.mark.parametrize("narrow", ["LDG.E.64", "LDG.E", "LDG.E.U16", "LDG.E.S8"])
def test_a_main_loop_without_vector_loads_is_none(narrow: str) -> None:
    assert sass.main_loop(code(LISTING.replace("LDG.E.128.CONSTANT", narrow)), loads=2, stores=2) is None


def test_narrow_loads_of_a_way_that_was_merged_into_the_main_loop_do_not_hide_it() -> None:
    merged = LISTING.replace("IMAD.MOV.U32 R5, RZ, RZ, R4", "@P5 LDG.E.U16 R5, desc[UR4][R16.64]")
    loop = sass.main_loop(code(merged), loads=2, stores=2)
    assert loop is not None and (loop.elements, loop.cost.total) == (8, 8)


def test_a_jump_by_a_table_leads_to_what_nothing_else_leads_to() -> None:
    head = LISTING.replace("BSSY B0, 0x00d0", "BRX R2 -0x20").replace("BSYNC B0", "EXIT")
    loop = sass.main_loop(code(head), loads=2, stores=2)
    assert loop is not None and loop.elements == 8


def test_wider_vectors_are_vectors() -> None:
    wide = LISTING.replace("LDG.E.128.CONSTANT", "LDG.E.ENL2.256").replace("STG.E.128", "STG.E.ENL2.256")
    loop = sass.main_loop(code(wide), loads=2, stores=2)
    assert loop is not None and loop.elements == 16


def test_an_inner_loop_does_not_hide_the_main_one() -> None:
    inner = LISTING.replace("LOP3.LUT R3, R3, R17, R18, 0x96, !PT", "@P4 BRA 0x0070")
    loop = sass.main_loop(code(inner), loads=2, stores=2)
    assert loop is not None and (loop.cost.total, loop.cost.integer) == (8, 1)


def test_of_two_main_loops_the_one_that_takes_more_at_once_counts() -> None:
    small = LISTING.replace("U16 R6", "128 R6").replace("STG.E.U16", "STG.E.128")
    unrolled = small.replace("FADD R4, R4, R8", "STG.E.128 desc[UR4][R24.64], R4")
    loop = sass.main_loop(code(unrolled), loads=2, stores=2)
    assert loop is not None and (loop.elements, loop.cost.total) == (16, 10)


def test_local_memory_is_seen() -> None:
    assert not any(instruction.is_local for instruction in code())
    assert any(instruction.is_local for instruction in code(LISTING.replace("LDG.E.U16", "LDL.U16")))
