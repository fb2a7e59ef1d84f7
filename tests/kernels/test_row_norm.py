"""The launches of the norms' kernels: what the compilers' record and machine code say of them."""

import pytest
from minillm_kernels import compile_report, row_norm


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
