"""The launches of the norms' kernels: what the compilers' record and machine code say of them."""

import re

import pytest
import torch
from minillm_kernels import compile_report, launching, row_norm


@pytest.mark.parametrize("size", [row_norm.FORWARD_TILE, row_norm.BACKWARD_TILE], ids=["forward", "backward"])
def test_a_tile_holds_rows_of_any_width(size):
    """Of one column more than a power of two as well."""
    for width in range(1, row_norm.MAX_FORWARD + 1):
        _, block_c, _ = row_norm.tile(width, size)
        assert width <= block_c


@pytest.mark.parametrize(
    "op, variant, tensors",  # dy, s, rstd, of layer_norm mean, and ds or the seed
    [
        ("layer_norm", "C=1024 plain", 4),
        ("layer_norm", "C=1024 HAS_BIAS", 4),
        ("layer_norm", "C=1024 HAS_DS", 5),
        ("layer_norm", "C=1024 HAS_DROPOUT", 5),
        ("rms_norm", "C=4096 plain", 3),
        ("rms_norm", "C=4096 HAS_DS", 4),
        ("layer_norm", "C=4096 HAS_DS HAS_BIAS", 5),
    ],
)
def test_the_next_tiles_copies_are_on_their_way_while_one_is_worked_on(op, variant, tensors):
    """Before a tile is read there is no wait for all copies, but for all save those of the tile that follows."""
    found = compile_report.machine_code_of(op, f"backward torch.bfloat16 {variant}", "sm_90")
    waits = [line.split("SB0,")[1].split()[0] for line in found["sass"].splitlines() if "DEPBAR.LE SB0" in line]
    assert waits == [hex(tensors), "0x0"]  # in the loop, and after it


@pytest.mark.parametrize("variant, lanes", [("C=128 plain", 16), ("C=128 HAS_DS", 16), ("C=4096 HAS_DS", 32)])
def test_the_two_sums_of_a_row_go_side_by_side(variant, lanes):
    """Lanes exchange both at each distance; with fewer registers ptxas does one sum, then the other."""
    found = compile_report.machine_code_of("layer_norm", f"backward torch.bfloat16 {variant}", "sm_90")
    distances = [int(d, 16) for d in re.findall(r"SHFL\.BFLY PT, R\d+, R\d+, (0x[0-9a-f]+)", found["sass"])]
    halves = [lanes >> n for n in range(1, lanes.bit_length())]
    assert distances[: 2 * len(halves)] == [distance for distance in halves for _ in range(2)]


@pytest.mark.parametrize("width", [128, 1024, 4096])
def test_no_program_of_the_backward_pass_waits_for_a_turn(width):
    """As many programs as are launched are resident on NVIDIA's multiprocessors."""
    recorded = compile_report.read_record()["rows"]
    rows = [r for r in recorded if f"C={width}" in r["variant"] and r["variant"].startswith("backward torch.")]
    assert len(rows) >= 18
    for row in rows:
        if row["target"].startswith("sm_"):
            has = [name in row["variant"] for name in ("HAS_DS", "HAS_BIAS", "HAS_DROPOUT")]
            extras = row_norm.Extras(row["op"] == "layer_norm", *has)
            block_r, block_c, _ = row_norm.tile(width, row_norm.BACKWARD_TILE)
            itemsize = 4 if "float32" in row["variant"] else 2
            at_work = row_norm.threads_per_sm(width, block_r * block_c * itemsize, extras)
            programs = row["resident_warps"] // row["warps"]
            assert programs >= -(-at_work // (32 * row["warps"])), (row["op"], row["variant"], row["target"])


@pytest.mark.parametrize("warp, options", [(32, {"num_warps": 4, "maxnreg": 96}), (64, {"num_warps": 2})])
def test_registers_are_asked_of_nvidias_compiler_alone(monkeypatch, warp, options):
    """Triton refuses the option on AMD's."""
    asked = []
    kernel = {(7,): lambda *arguments, **given: asked.append(given)}
    monkeypatch.setattr(launching, "WARP", warp)
    launching.launch(kernel, (7,), torch.zeros(1), threads=128, registers=96)
    launching.launch(kernel, (7,), torch.zeros(1), threads=128)
    assert asked == [options, {"num_warps": 128 // warp}]
