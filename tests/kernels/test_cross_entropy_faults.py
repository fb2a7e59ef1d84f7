"""Seeded faults: each breaks one line of the kernels or of the walk over chunks, and a named check must notice.

A fault is a text to replace in the source; the faulty module is loaded beside the right one and takes its place.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import minillm_kernels as mk
import pytest
import torch
from minillm_kernels.cross_entropy import fused as cross_entropy
from minillm_kernels.linear_cross_entropy import chunks
from minillm_kernels.linear_cross_entropy import fused as linear
from planting import INTERPRETED

pytestmark = INTERPRETED
ALL: dict[str, Any] = {"label_smoothing": 0.2, "z_loss": 0.1, "softcap": 2.5}


def logits_and_targets(rows: int, V: int) -> dict[str, torch.Tensor]:
    """Return logits that grow along V, so that later tiles have the larger ones; every third target is ignored."""
    torch.manual_seed(0)
    targets = torch.randint(V, (rows,))
    targets[1::3] = -100
    return {"logits": torch.randn(rows, V) + 4 * torch.linspace(0, 1, V), "targets": targets}


def inputs(rows: int = 6, C: int = 5, V: int = 37) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    targets = torch.randint(V, (rows,))
    targets[1::3] = -100
    return {
        "hidden": torch.randn(rows, C),
        "weight": torch.randn(V, C),
        "bias": torch.randn(V),
        "targets": targets,
    }


def check(compare: Callable[..., None], name: str) -> None:
    """Run one of the checks of `test_cross_entropy.py` and `test_linear_cross_entropy.py`, small."""

    def loss(made: dict[str, torch.Tensor], **options: Any) -> None:
        compare(mk.cross_entropy, made, torch.float32, (), name="fused", **{"reduction": "none"} | options)

    def product(made: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32, **options: Any) -> None:
        cast = ("hidden", "weight", "bias")
        compare(mk.linear_cross_entropy, made, dtype, cast, name="fused", terms=3.0, **options)

    match name:
        case "plain":
            loss(logits_and_targets(3, 64))
        case "ragged":
            loss(logits_and_targets(3, 37))
        case "wide":  # rows of all 4 places between two boundaries of 16 bytes, a target in each of their parts
            made = logits_and_targets(12, 4501)
            made["targets"][::3] = torch.tensor([0, 4500, 4499, 2])
            loss(made)
        case "wide, rows apart":
            made = logits_and_targets(4, 5008)
            loss({"logits": made["logits"][:, :5000], "targets": made["targets"].clamp(max=4999)})
        case "wide, all options":
            loss(logits_and_targets(5, 4501), **ALL)
        case "wide, ignored":
            made = logits_and_targets(3, 4501)
            made["logits"][1] = torch.nan
            logits = made["logits"].requires_grad_()
            with mk.backend("fused"):
                mk.cross_entropy(logits, made["targets"], reduction="sum").backward()
            assert logits.grad is not None and logits.grad.isfinite().all(), "dlogits"
        case "strided, several tiles":
            made = logits_and_targets(2, 5000)
            loss(made | {"logits": made["logits"].T.contiguous().T})
        case "all options":
            loss(logits_and_targets(3, 37), **ALL)
        case "strided":
            loss(logits_and_targets(40, 6) | {"logits": torch.randn(6, 40).T})
        case "linear":
            product(inputs(), reduction="sum", **ALL)
        case "linear, several tiles":
            product(inputs(V=4501), reduction="sum")
        case "linear, several tiles of several rows":
            with mock.patch.object(cross_entropy, "launch_for", lambda *_: (4, 16, 1)):
                product(inputs(), reduction="sum")
        case "linear by row":
            product(inputs(), reduction="none")
        case "linear, many chunks":
            product(inputs(), reduction="sum", memory_budget=1)
        case "linear, float16":
            product(inputs(), torch.float16, reduction="sum")
        case _:
            raise ValueError(name)


CHECKS = (
    "plain",
    "ragged",
    "wide",
    "wide, rows apart",
    "wide, all options",
    "wide, ignored",
    "all options",
    "strided",
    "strided, several tiles",
    "linear",
    "linear, several tiles",
    "linear, several tiles of several rows",
    "linear by row",
    "linear, many chunks",
    "linear, float16",
)
FAULTS = [  # module, right text, wrong text, the check that notices
    (cross_entropy, "lse - (1.0 - smoothing) * l_t", "lse + (1.0 - smoothing) * l_t", "plain"),
    (cross_entropy, "s * exponential(m - finite)[:, None]", "s", "strided, several tiles"),
    (cross_entropy, 'tl.where(mask_v, l, -float("inf"))', "l", "ragged"),
    (cross_entropy, "smoothing * (total / num_cols)", "smoothing * total", "all options"),
    (cross_entropy, "share = smoothing / num_cols", "share = smoothing", "all options"),
    (cross_entropy, "exponential(l - lse)", "tl.exp2(l - lse)", "plain"),
    (cross_entropy, "tl.where(offs_j < head, offs_j, offs_j + whole)", "offs_j + whole", "wide"),
    (cross_entropy, "offs_j < num_cols - whole", "offs_j < head", "wide"),
    (cross_entropy, "s = s * exponential(m - finite) +", "s = s +", "wide"),
    (cross_entropy, "tl.sum(s * exponential(m - finite), axis=0)", "tl.sum(s, axis=0)", "wide"),
    (cross_entropy, "+ tl.sum(exponential(l_ends - finite), axis=0)", "", "wide"),
    (cross_entropy, 'tl.where(mask_g, l, -float("inf"))', "l", "wide"),
    (cross_entropy, 'tl.where(mask_j, l_ends, -float("inf"))', "l_ends", "wide"),
    (cross_entropy, "tl.load(tile + num_full, mask", "tl.load(tile, mask", "wide"),
    (cross_entropy, "offs_v == (target - head).to(tl.int32)", "offs_v == target.to(tl.int32)", "wide"),
    (cross_entropy, "offs_v == target, lse", "offs_j == target, lse", "wide"),
    (cross_entropy, "if start + BLOCK_V >= num_cols:", "if start < 0:", "wide"),
    (cross_entropy, "tl.where(kept & ((target", "tl.where(((target", "wide"),
    (cross_entropy, "x_ptr + tl.program_id(0).to(tl.int64) * x_row_stride", "x_ptr", "wide"),
    (cross_entropy, "tl.program_id(0).to(tl.int64) * x_row_stride", "tl.program_id(0) * num_cols", "wide, rows apart"),
    (cross_entropy, "x_ptr + row * x_row_stride, dx", "x_ptr + row * num_cols, dx", "wide, rows apart"),
    (cross_entropy, "+ tl.sum(l_ends, axis=0)\n", "\n", "wide, all options"),
    (cross_entropy, "mask=mask_g & kept", "mask=mask_g", "wide, ignored"),
    (cross_entropy, "mask=mask_j & kept", "mask=mask_j", "wide, ignored"),
    (cross_entropy, "1.0 + 2.0 * z_loss * lse", "1.0 + z_loss * lse", "all options"),
    (cross_entropy, "dx *= 1.0 - ratio * ratio", "dx *= 1.0", "all options"),
    (cross_entropy, "tl.where(x < 0, -size, size)", "size", "all options"),
    (cross_entropy, "offs_v == target[:, None]", "offs_v + 1 == target[:, None]", "plain"),
    (cross_entropy, "dx = g * (p", "dx = (p", "plain"),
    (cross_entropy, "tl.where(kept, dx, 0.0)", "dx", "plain"),
    (cross_entropy, "tl.where(kept, dx, 0.0), mask=mask_r[:, None])", "dx, mask=kept)", "strided, several tiles"),
    (cross_entropy, "tl.where(kept, losses, 0.0)", "losses", "plain"),
    (cross_entropy, "target * x_col_stride", "target", "strided"),
    (cross_entropy, "(num_full + offs_v).to(tl.int64) * x_col_stride", "num_full + offs_v", "strided"),
    (linear, "range(0, whole, BLOCK_V)", "range(BLOCK_V, whole, BLOCK_V)", "linear, several tiles"),
    (linear, "x_row, x_row, True, target_row", "x_row, x_row, False, target_row", "linear, several tiles"),
    (linear, "is_target = start + offs_v ==", "is_target = offs_v ==", "linear, several tiles of several rows"),
    (
        linear,
        "tile = row_ptr[:, None] + num_full + offs_v",
        "tile = row_ptr[:, None] + offs_v",
        "linear, several tiles of several rows",
    ),
    (linear, "g = tl.load(g_ptr + rows, mask=mask_r, other=0.0)", "g = tl.load(g_ptr)", "linear by row"),
    (
        linear,
        "tl.store(losses_ptr + rows, losses, mask=mask_r)",
        "tl.store(losses_ptr + rows, lse, mask=mask_r)",
        "linear",
    ),
    (chunks, "g_rows = None if g is None else g[rows]", "g_rows = None", "linear by row"),
    (chunks, "gradient.div_(scale)", "gradient.div_(1)", "linear, float16"),
    (chunks, "dbias += ", "dbias[:] = ", "linear, many chunks"),
    (chunks, "total.addmm_(a, b)", "total.copy_(a @ b)", "linear, many chunks"),
    (chunks, "targets[rows], g_rows", "targets[:R], g_rows", "linear"),
]


@pytest.fixture
def put_in_place(tmp_path, monkeypatch) -> Callable[[ModuleType, str, str], None]:
    """Return a function that replaces a text in a module's source and lets what comes of it do the work.

    The operators, which a process registers once, stay the right module's; they call what is put in place.
    """

    def put(module: ModuleType, right: str, wrong: str) -> None:
        source = Path(str(module.__file__)).read_text(encoding="utf-8").split("@torch.library.custom_op")[0]
        assert right in source, f"{module.__name__} no longer has {right!r}"
        name = f"faulty_{len(sys.modules)}_{module.__name__.replace('.', '_')}"  # Python keeps texts by file name
        path = tmp_path / f"{name}.py"
        path.write_text(source.replace(right, wrong), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        faulty = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, faulty)  # where Triton looks for the globals of a kernel
        spec.loader.exec_module(faulty)
        for part in ("forward", "backward", "losses_and_dlogits", "walk"):
            if hasattr(module, part):
                monkeypatch.setattr(module, part, getattr(faulty, part))

    return put


@pytest.mark.parametrize("name", CHECKS)
def test_no_check_complains_without_a_fault(compare, poisoned, put_in_place, name):
    for module in (cross_entropy, linear, chunks):
        put_in_place(module, "import", "import")
    check(compare, name)


@pytest.mark.parametrize(
    "module, right, wrong, name",
    [pytest.param(*fault, id=f"{fault[0].__name__.split('.', 1)[1]}: {fault[1]} -> {fault[2]}") for fault in FAULTS],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy, where a fault overflows
def test_check_notices_the_fault(compare, poisoned, put_in_place, module, right, wrong, name):
    put_in_place(module, right, wrong)
    with pytest.raises(AssertionError, match=r"output 0|dlogits|dhidden|dweight|dbias"):
        check(compare, name)
