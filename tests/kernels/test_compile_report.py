"""compile_report: what the compilers' texts say, and what is true of every kernel in use on every target."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
from minillm_kernels import compile_report, dispatch
from minillm_kernels.machine_code import (
    MACHINES,
    gcn_resources,
    ptxas_resources,
    resident_warps,
    sass_instructions,
)

pytest.importorskip("triton", reason="there is no Triton for this system")

RECORD = compile_report.read_record()
# Bytes a lane that variants of attention may spill, by what their name holds; nothing else may.
SPILLS_ALLOWED = {
    "everything": 800,  # a call with all options at once, which no model makes
    "D=256": 300,  # twice the accumulators of D=128, at the smallest tile that the matrix unit takes
    "": 64,
}

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'mm' for 'sm_80'
ptxas info    : Function properties for mm
    104 bytes stack frame, 100 bytes spill stores, 92 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 104 bytes cumulative stack size, 416 bytes cmem[0]
ptxas info    : Compile time = 161.204 ms
"""
SASS = """\
.text.mm:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   HFMA2.MMA R5, -RZ, RZ, 0, 0 ;
        /*0020*/              @!PT LDS RZ, [RZ] ;
        /*1540*/                   LDGSTS.E.BYPASS.128 [R143], desc[UR40][R64.64], P2 ;
        /*1550*/                   LDGSTS.E.BYPASS.LTC128B.128 [R143], desc[UR40][R64.64], P2 ;
        /*1560*/              @!P3 LDG.E.U16.CONSTANT R9, desc[UR6][R8.64] ;
        /*1570*/               @P0 LDG.E R9, desc[UR6][R8.64] ;
        /*1580*/                   LDG.E.64 R9, desc[UR6][R8.64] ;
        /*1590*/                   HGMMA.64x128x16.F32 R24, gdesc[UR8], R24, gsb0 ;
        /*15a0*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*15b0*/             @!UP0 UTCHMMA gdesc[UR18], gdesc[UR22], tmem[UR5], tmem[UR6], idesc[UR7], UPT ;
        /*15c0*/                   UTMALDG.2D [UR8], [UR4], desc[UR6] ;
        /*15d0*/                   UBLKCP.S.G [UR8], [UR4], UR9 ;
        /*5110*/                   STG.E.128 desc[UR40][R2.64], R4 ;
        /*5120*/                   STG.E.U8 desc[UR40][R2.64], R4 ;
"""
GCN = """\
	global_load_dwordx4 v[2:5], v[0:1], off
	global_load_ushort v6, v[0:1], off
	buffer_load_dword v1, v2, s[4:7], 0 offen
	v_mfma_f32_32x32x8_f16 v[2:17], v[154:155], v[162:163], v[2:17]
	scratch_store_dwordx2 off, v[0:1], s32
	scratch_load_dword v0, off, s32 offset:8
	global_store_dwordx2 v[0:1], v[2:3], off
; NumVgprs: 256
    .vgpr_count:     309
    .vgpr_spill_count: 3
"""


def test_registers_and_spills_are_those_of_the_log():
    assert ptxas_resources(PTXAS) == {"registers": 255, "spill_stores": 100, "spill_loads": 92}
    with pytest.raises(ValueError, match="no log of ptxas"):
        ptxas_resources("ptxas fatal: nothing")


def test_instructions_are_those_of_the_disassembly():
    assert sass_instructions(SASS) == {
        "matrix": {"mma.sync": 1, "tcgen05": 1, "wgmma": 1},
        "copies": {"cp.async": 2, "cp.async.bulk": 2},
        "loads": {"128": 2, "64": 1, "32": 1, "16": 1},
        "stores": {"128": 1, "8": 1},
    }


def test_everything_is_in_the_assembly_for_amd():
    assert gcn_resources(GCN) == {
        "registers": 309,
        "spill_stores": 8,
        "spill_loads": 4,
        "matrix": {"mfma": 1},
        "copies": {},
        "loads": {"128": 1, "32": 1, "16": 1},
        "stores": {"64": 1},
    }
    with pytest.raises(ValueError, match="no AMDGPU assembly"):
        gcn_resources(SASS)


@pytest.mark.parametrize(
    "target, registers, shared, num_warps, tensor_memory, expected",
    [
        pytest.param("sm_90", 32, 0, 4, 0, 64, id="as-many-as-there-are"),
        pytest.param("sm_90", 33, 0, 4, 0, 48, id="33-registers-count-as-40"),
        pytest.param("sm_90", 255, 0, 8, 0, 8, id="registers"),
        pytest.param("sm_90", 255, 0, 16, 0, 0, id="too-many-registers"),
        pytest.param("sm_90", 32, 75 << 10, 4, 0, 12, id="shared-memory-with-the-driver-s-part"),
        pytest.param("sm_90", 32, 76 << 10, 4, 0, 8, id="shared-memory-a-little-more"),
        pytest.param("sm_80", 32, 164 << 10, 4, 0, 0, id="more-than-a-block-may-ask-for"),
        pytest.param("sm_90", 32, 0, 1, 0, 32, id="blocks"),
        pytest.param("sm_100", 32, 0, 4, 256, 8, id="tensor-memory"),
        pytest.param("gfx942", 128, 0, 4, 0, 16, id="amd-registers"),
        pytest.param("gfx942", 309, 0, 4, 0, 4, id="amd-accumulation-registers-too"),
        pytest.param("gfx942", 64, 65537, 4, 0, 0, id="amd-shared-memory"),
    ],
)
def test_occupancy_is_that_of_a_hand_count(target, registers, shared, num_warps, tensor_memory, expected):
    assert resident_warps(MACHINES[target], registers, shared, num_warps, tensor_memory) == expected


ROW = {"op": "attention", "variant": "f16", "target": "sm_90", "registers": 255, "shared": 9, "resident_warps": 8}


@pytest.mark.parametrize(
    "change, matrix_unit, expected",
    [
        pytest.param({}, True, "", id="nothing"),
        pytest.param(
            {"spill_stores": 4}, True, "attention, f16, sm_90: spills 4 bytes a lane, at most 0 may", id="spill"
        ),
        pytest.param({"matrix": {}}, True, "does not use the matrix unit", id="matrix"),
        pytest.param({"matrix": {}}, False, "", id="no-matrix-needed"),
        pytest.param({"resident_warps": 0}, True, "fits on no multiprocessor (9 bytes of shared memory", id="fits"),
    ],
)
def test_planted_fault_is_complained_about(change, matrix_unit, expected):
    row = ROW | {"spill_stores": 0, "matrix": {"wgmma": 4}} | change
    found = compile_report.complaint(row, matrix_unit)
    assert expected in found and bool(found) == bool(expected)


PLANTED = """
    import json
    import sys

    import triton
    import triton.language as tl
    from minillm_kernels import compile_report
    from minillm_kernels.variant import Variant


    @triton.jit
    def product(a_ptr, b_ptr, c_ptr, strides, N: tl.constexpr, PRECISION: tl.constexpr):
        i = tl.arange(0, N)
        tile = i[:, None] * strides[0] + i[None, :] * strides[1]
        c = tl.dot(tl.load(a_ptr + tile), tl.load(b_ptr + tile), input_precision=PRECISION)
        tl.store(c_ptr + tile, c)


    def variant(name, dtype, N, precision, num_warps):
        return Variant(
            op="planted",
            name=name,
            kernel=product,
            signature={
                "a_ptr": dtype, "b_ptr": dtype, "c_ptr": "*fp32", "strides": ("i32", "constexpr"),
                "N": "constexpr", "PRECISION": "constexpr",
            },
            constants={"N": N, "PRECISION": precision, (3, 1): 1},
            aligned=frozenset({"a_ptr", "b_ptr", "c_ptr", "strides"}),
            num_warps=num_warps,
        )


    half = variant("half", "*fp16", 64, "tf32", 4)
    rows = [compile_report.build(half, target) for target in compile_report.TARGETS]
    rows.append(compile_report.build(variant("ieee", "*fp32", 32, "ieee", 4), "sm_90"))
    rows.append(compile_report.build(variant("one warp", "*fp16", 128, "tf32", 1), "sm_80"))
    print(json.dumps(rows))
"""


def test_report_sees_matrix_units_wide_loads_and_spills(tmp_path):
    (tmp_path / "planted.py").write_text(textwrap.dedent(PLANTED))
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(compile_report.FOLDER)
    run = [sys.executable, str(tmp_path / "planted.py")]
    rows = json.loads(subprocess.run(run, env=environment, check=True, capture_output=True, text=True).stdout)
    kinds = {row["target"]: list(row["matrix"]) for row in rows[:4]}
    assert kinds == {"sm_80": ["mma.sync"], "sm_90": ["wgmma"], "sm_100": ["tcgen05"], "gfx942": ["mfma"]}
    assert all("128" in row["loads"] and row["resident_warps"] > 0 for row in rows[:4])
    assert not any(row["spill_stores"] for row in rows[:5] if row["target"] != "sm_100")
    assert rows[4]["matrix"] == {}  # ieee float32 has no matrix unit
    assert rows[5]["spill_stores"] > 1000  # 128 x 128 float32 numbers in the registers of 32 lanes


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with compile_report.compilers() as pool:
        yield pool


@pytest.fixture(scope="module")
def in_use(pool) -> dict:
    return compile_report.listed(pool, dispatch.FUSED_OPS)


def job_of(row) -> tuple[str, str, str]:
    return row["op"], row["variant"], row["target"]


def spill_limit(row) -> int:
    if row["op"] != "attention":
        return 0
    return next(limit for part, limit in SPILLS_ALLOWED.items() if part in row["variant"])


def test_record_has_every_variant_in_use_and_no_other(in_use):
    jobs = list(in_use)
    recorded = [job_of(row) for row in RECORD["rows"]]
    again = "run python -m minillm_kernels.compile_report"
    assert sorted(set(jobs) - set(recorded)) == [], again
    assert sorted(set(recorded) - set(jobs)) == [], again
    assert len(recorded) == len(set(recorded))


def test_nothing_on_record_spills_or_leaves_the_matrix_unit(in_use):
    found = [compile_report.complaint(row, in_use[job_of(row)], spill_limit(row)) for row in RECORD["rows"]]
    assert [text for text in found if text] == []


def test_table_is_made_of_the_record():
    table = (compile_report.FOLDER / "COMPILE_REPORT.md").read_text(encoding="utf-8")
    assert table == compile_report.to_markdown(RECORD)
    record = (compile_report.FOLDER / "compile_report.json").read_text(encoding="utf-8")
    assert record == compile_report.to_json(RECORD)


def compare_with_record(pool, in_use, expected) -> None:
    """Assert that rows on record come out again: what must not be, and with the same Triton every number."""
    found = compile_report.rows(pool, [job_of(row) for row in expected])
    faults = [compile_report.complaint(row, in_use[job_of(row)], spill_limit(row)) for row in found]
    assert [text for text in faults if text] == []
    if pool.submit(compile_report.triton_version).result() == RECORD["triton"]:
        assert found == expected, "run python -m minillm_kernels.compile_report"


def test_the_hardest_variant_of_each_op_compiles_as_recorded(pool, in_use):
    hardest = {}
    for row in RECORD["rows"]:
        if row["target"] == "sm_90" and row["registers"] > hardest.get(row["op"], {"registers": 0})["registers"]:
            hardest[row["op"]] = row
    compare_with_record(pool, in_use, list(hardest.values()))


@pytest.mark.slow
def test_every_variant_compiles_as_recorded(pool, in_use):
    compare_with_record(pool, in_use, RECORD["rows"])


def test_report_of_some_keeps_the_rows_of_others():
    def row(op, variant, target, registers):
        return {"op": op, "variant": variant, "target": target, "registers": registers}

    one, other = [op for op in dispatch.OPS if op in dispatch.FUSED_OPS][:2]
    record = {"rows": [row(one, "a", "sm_80", 1), row(one, "a", "sm_90", 1), row(other, "a", "sm_90", 1)]}
    record["rows"].append(row("no longer", "a", "sm_90", 1))
    new = [row(one, "b", "sm_90", 2), row(one, "a", "sm_90", 2)]
    found = compile_report.merged(record, new, [one], ["sm_90"])
    assert found == [  # variants in the order in which the op names them now
        row(one, "b", "sm_90", 2),
        row(one, "a", "sm_80", 1),
        row(one, "a", "sm_90", 2),
        row(other, "a", "sm_90", 1),
    ]


def test_interpreting_process_does_not_compile(monkeypatch):
    from triton import knobs

    monkeypatch.setattr(knobs.runtime, "interpret", True)
    variant = next(iter(compile_report.variants(next(iter(dispatch.FUSED_OPS)))))
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        compile_report.build(variant, "sm_90")
