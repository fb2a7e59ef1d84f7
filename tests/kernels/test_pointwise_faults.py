"""Seeded faults: each changes one thing in the text of a kernel bound by memory, and the tests' own check must see it.

A test that passes whatever the kernel does is worth nothing. Here the text of a module gets one fault, its kernels take
the places of the right ones, and the fixture `compare` (rung 3 of the ladder) has to fail where it passed before.
"""

import importlib
import importlib.util
import itertools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minillm_kernels as mk
import pytest
import torch
from planting import INTERPRETED
from torch import Tensor

pytestmark = INTERPRETED
NUMBER = itertools.count()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POSITIONS = torch.tensor([[0, 1, 2, 0, 1], [3, 4, 0, 1, 8]], device=DEVICE)
ANGLE = torch.outer(torch.arange(9), torch.tensor([1.0, 0.3]))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def norm_inputs(*shape: int, residual: bool = False, bias: bool = False) -> dict[str, Tensor]:
    made = {"x": normal(*shape) + 0.5, "weight": normal(shape[-1]) + 1}
    made |= {"residual": normal(*shape)} if residual else {}
    return made | ({"bias": normal(shape[-1])} if bias else {})


def layer(C: int = 5, rows: int = 3, **options: Any) -> tuple[Callable[..., Any], dict[str, Tensor], dict[str, Any]]:
    switches = {name: options.pop(name) for name in ("residual", "bias") if name in options}
    return mk.layer_norm, norm_inputs(rows, C, **switches), options


def unary(op: Callable[..., Any], rows: int = 3, bias: bool = True, **options: Any):
    return op, {"x": normal(rows, 5)} | ({"bias": normal(5)} if bias else {}), options


def gated(op: Callable[..., Any], **options: Any):
    return op, {"gate": normal(3, 5), "up": normal(3, 5)}, options


def turned(**options: Any):
    q, k, _ = normal(2, 5, 4, 4).split((2, 1, 1), dim=2)
    k = k.transpose(0, 1).contiguous().transpose(0, 1)  # other strides than those of q
    return mk.rotary, {"q": q, "k": k, "cos": ANGLE.cos(), "sin": ANGLE.sin()}, options


def dropped():
    return lambda x: mk.dropout(x, 0.4, 3), {"x": normal(9)}, {}


def looked_up(tokens: list[int]):
    return lambda weight: mk.embedding(torch.tensor(tokens, device=weight.device), weight), {"weight": normal(4, 3)}, {}


@dataclass(frozen=True)
class Fault:
    """What is changed where, and the call that shows it: op, tensors by name, options; dtype of the activations."""

    id: str
    module: str
    right: str
    wrong: str
    call: tuple[Callable[..., Any], dict[str, Tensor], dict[str, Any]]
    dtype: torch.dtype = torch.float32


NORM, ELEMENT, SUMS = "row_norm_kernels", "elementwise_kernels", "column_sums"
FAULTS = [
    Fault("mean-over-the-block", NORM, "tl.sum(s, axis=1) / num_cols", "tl.sum(s, axis=1) / BLOCK_C", layer()),
    Fault(
        "padding-has-a-deviation",
        NORM,
        "tl.where(mask_c[None, :], s - mean[:, None], 0.0)",
        "s - mean[:, None]",
        layer(),
    ),
    Fault("eps-forgotten", NORM, "axis=1) / num_cols + eps", "axis=1) / num_cols", layer(eps=0.5)),
    Fault(
        "bias-forgotten",
        NORM,
        "    if bias_ptr is not None:\n        y +=",
        "    if False:\n        y +=",
        layer(bias=True),
    ),
    Fault("x-hat-term-added", NORM, "total = g - x_hat", "total = g + x_hat", layer()),
    Fault("mean-of-g-forgotten", NORM, "- (sum_g / num_cols)", "- 0 * (sum_g / num_cols)", layer()),
    Fault("the-two-sums-for-each-other", NORM, "sum_g_x_hat, sum_g = ", "sum_g, sum_g_x_hat = ", layer()),
    Fault("weight-left-out-of-g", NORM, "g = dy * weight[None, :]", "g = dy", layer()),
    Fault(
        "gradient-of-the-sum-dropped",
        NORM,
        "        if ds_ptr is not None:\n            ds_offs",
        "        if False:\n            ds_offs",
        layer(residual=True),
    ),
    Fault(
        "another-mask-in-backward",
        NORM,
        "# drawn while the tile is on its way\n            kept = _kept_tile(seed_ptr, offs_r[:, None], mask",
        "\n            kept = _kept_tile(seed_ptr, offs_r[:, None] + 1, mask",
        layer(dropout_p=0.5, seed=3),
    ),
    Fault(
        "another-mask-in-backward-of-one-stage",
        NORM,
        "# before its loads registers would spill\n            kept = _kept_tile(seed_ptr, offs_r[:, None], mask",
        "\n            kept = _kept_tile(seed_ptr, offs_r[:, None] + 1, mask",
        layer(C=1100, dropout_p=0.5, seed=3),
    ),
    Fault(
        "dresidual-is-dropped-too",
        NORM,
        "tl.store(dresidual_ptr + offs, total.to",
        "kept = _kept_tile(seed_ptr, offs_r[:, None], mask, dropout, BLOCK_R, BLOCK_C)\n"
        "            tl.store(dresidual_ptr + offs, _drop(total, kept, dropout).to",
        layer(residual=True, dropout_p=0.5, seed=3),
    ),
    Fault(
        "tiles-summed-by-all-programs",
        NORM,
        "num_rows, BLOCK_R), tl.num_programs(0)",
        "num_rows, BLOCK_R), 1",
        layer(rows=200),
    ),
    Fault(
        "only-the-first-tile", NORM, "range(program, num_tiles(num_rows, BLOCK_R)", "range(program, 1", layer(rows=300)
    ),
    Fault(
        "sums-of-the-first-program", SUMS, "start + tl.arange(0, BLOCK_P)", "0 * tl.arange(0, BLOCK_P)", layer(rows=99)
    ),
    Fault("weight-sums-twice", SUMS, "which.to(tl.int64) * num_programs", "0 * num_programs", layer(bias=True)),
    Fault("sums-not-written", SUMS, "mask=mask_c & (which == 1)", "mask=mask_c & (which == 2)", layer(bias=True)),
    Fault("programs-beyond-the-last", SUMS, "offs_p < num_programs", "offs_p < num_programs - 1", unary(mk.relu, 99)),
    Fault(
        "bias-forgotten-in-backward",
        ELEMENT,
        "            h += bias[None, :]",
        "            h += 0 * bias[None, :]",
        unary(mk.gelu),
    ),
    Fault("dbias-sums-dy", ELEMENT, "dbias += dh", "dbias += dy", unary(mk.gelu)),
    Fault(
        "rows-beyond-the-last-count",
        ELEMENT,
        "dy_row_stride + offs_c[None, :], mask=mask, other=0.0",
        "dy_row_stride + offs_c[None, :], mask=mask, other=1.0",
        unary(mk.relu),
    ),
    Fault(
        "unary-mask-differs-in-backward",
        ELEMENT,
        "        dy = _drop(dy, seed_ptr, offs_r,",
        "        dy = _drop(dy, seed_ptr, offs_r + 1,",
        unary(mk.gelu, dropout_p=0.5, seed=3),
    ),
    Fault(
        "gated-mask-differs-in-backward",
        ELEMENT,
        "\n    dy = _drop(dy, seed_ptr, offs_r, start,",
        "\n    dy = _drop(dy, seed_ptr, offs_r, start + 8,",
        gated(mk.swiglu, dropout_p=0.5, seed=3),
    ),
    Fault(
        "dropped-before-the-function",  # which relu and gelu map to 0 too, and so hide but for its scale
        ELEMENT,
        "y = _drop(VALUE(h), seed_ptr, offs_r, start, dropout, BLOCK_R, BLOCK_C)",
        "y = VALUE(_drop(h, seed_ptr, offs_r, start, dropout, BLOCK_R, BLOCK_C))",
        unary(mk.gelu, dropout_p=0.5, seed=3),
    ),
    Fault(
        "dropout-not-scaled",
        ELEMENT,
        "tl.where(kept, t * factor",
        "tl.where(kept, t",
        gated(mk.geglu, dropout_p=0.5, seed=3),
    ),
    Fault("dup-from-gate", ELEMENT, "dy * VALUE(gate)", "dy * gate", gated(mk.swiglu)),
    Fault("dgate-without-up", ELEMENT, "GRADIENT(gate, dy * up)", "GRADIENT(gate, dy)", gated(mk.geglu)),
    Fault("slope-1-at-0", "relu.fused", "h > 0", "h >= 0", (mk.relu, {"x": torch.zeros(3)}, {})),
    Fault("relu2-half-slope", "relu2.fused", "return 2 * tl.where", "return tl.where", unary(mk.relu2)),
    Fault("density-without-h", "gelu.fused", "+ h * tl.exp(", "+ tl.exp(", unary(mk.gelu)),
    Fault("tail-of-one-power-less", "gelu.fused", "DEGREE + 1", "DEGREE", unary(mk.gelu), torch.float16),
    Fault("tail-added", "gelu.fused", "- u * normal_tail(u)", "+ u * normal_tail(u)", unary(mk.gelu), torch.float16),
    Fault("tail-on-the-wrong-side", "gelu.fused", "where(h < 0", "where(h > 0", unary(mk.gelu), torch.float16),
    Fault("narrow-density-without-h", "gelu.fused", "+ h * tl.exp2(", "+ tl.exp2(", unary(mk.gelu), torch.float16),
    Fault("rest-without-exponential", ELEMENT, "e * sigma", "sigma", unary(mk.gelu, approximate="tanh")),
    Fault("tanh-cube-once", "gelu.fused", "(3 * TWO_A * B)", "(TWO_A * B)", unary(mk.gelu, approximate="tanh")),
    Fault("silu-slope-sign", "swiglu.fused", "(1 + gate * rest)", "(1 - gate * rest)", gated(mk.swiglu)),
    Fault("turned-on-in-backward", "rotary.fused", "sin = -sin", "sin = sin", turned()),
    Fault(
        "pairs-turned-the-wrong-way",
        "rotary.fused",
        "tl.join(a * cos - b",
        "tl.join(a * cos + b",
        turned(interleaved=True),
    ),
    Fault("positions-ignored", "rotary.fused", "position = tl.load(", "0 * tl.load(", turned(positions=POSITIONS)),
    Fault(
        "strides-of-k-for-q",  # the other way round it would read past the end, and what is there may be anything
        "rotary.fused",
        "row * q_strides[0] + place * q_strides[1]",
        "row * k_strides[0] + place * k_strides[1]",
        turned(),
    ),
    Fault(
        "kept-where-dropped",
        "dropout.fused",
        "tl.where(kept, x * factor, 0.0)",
        "tl.where(kept, 0.0, x * factor)",
        dropped(),
    ),
    Fault("not-scaled", "dropout.fused", "x * factor", "x", dropped()),
    Fault("pieces-overlap", "embedding.fused", "tl.minimum(stop, start + PIECE)", "stop", looked_up([1] * 600)),
    Fault(
        "first-piece-only", "embedding.fused", "first, last, offs_c", "first, first + 1, offs_c", looked_up([1] * 600)
    ),
    Fault(
        "rows-not-in-sorted-order",
        "embedding.fused",
        "tl.load(order_ptr + place, mask=mask_n, other=0) if GATHER else place",
        "place",
        looked_up([3, 0, 3, 1]),
    ),
]


@pytest.fixture
def seed_fault(monkeypatch, tmp_path) -> Callable[[Fault], None]:
    """Return a function that puts faulty kernels into the places of the right ones."""

    def seed(fault: Fault) -> None:
        module: Any = importlib.import_module(f"minillm_kernels.{fault.module}")
        text = Path(module.__file__).read_text(encoding="utf-8")
        assert fault.right in text, "the text has changed: say this fault anew"
        text = text.replace(fault.right, fault.wrong, 1)
        name = f"fault_{next(NUMBER)}"  # an op is registered under a name once, and the module under its own
        text = text.replace('"minillm_kernels::', f'"minillm_{name}::')
        text = re.sub(r'(register_(?:unary|gated)\(\s*")', rf"\g<1>{name}_", text)
        path = tmp_path / f"{name}.py"  # Triton reads a kernel's text from its file
        path.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        faulty: Any = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, faulty)
        spec.loader.exec_module(faulty)
        for key, value in vars(faulty).items():
            if hasattr(value, "arg_names") and value.fn.__module__ == name:  # a function under triton.jit
                monkeypatch.setattr(module, key, value)
        if fault.module.endswith(".fused") and hasattr(module, "FUNCTIONS"):
            for form, function in faulty.FUNCTIONS.items():
                monkeypatch.setitem(module.FUNCTIONS, form, function)

    return seed


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_fault_is_seen(compare, seed_fault, fault):
    op, tensors, options = fault.call
    cast = [name for name in tensors if name in ("x", "residual")]
    compare(op, tensors, fault.dtype, cast, name="fused", **options)
    seed_fault(fault)
    with pytest.raises(AssertionError, match=" > "):  # the distance to the truth, above what is allowed
        compare(op, tensors, fault.dtype, cast, name="fused", **options)
