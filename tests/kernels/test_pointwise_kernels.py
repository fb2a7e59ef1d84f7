"""What every kernel bound by memory must do beside being right: rungs 3 to 5 of the ladder for ten ops at once.

The distance to the truth is in each op's own file. Here one small case of each op, with all that it can do switched on.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import minillm_kernels as mk
import pytest
import torch
from minillm_kernels import compile_report, dispatch
from torch import Tensor

TRITON_TYPE = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPS = ("rms_norm", "layer_norm", "relu", "gelu", "relu2", "swiglu", "geglu", "rotary", "dropout", "embedding")


def module(name: str) -> Any:
    return importlib.import_module(f"minillm_kernels.{name}")


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE)


def case(op: str) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    """Return a call of the op and its tensors, floating ones first: 70 rows, so that programs walk several tiles."""
    torch.manual_seed(0)
    x, C = normal(2, 35, 60), 60
    match op:
        case "rms_norm" | "layer_norm":
            norm = getattr(mk, op)

            def call(x, residual, weight, bias):
                return norm(x, weight, bias, residual=residual, dropout_p=0.3, seed=7)

            return call, {"x": x, "residual": normal(2, 35, C), "weight": normal(C), "bias": normal(C)}
        case "relu" | "relu2" | "gelu":
            return functools.partial(getattr(mk, op), dropout_p=0.3, seed=7), {"x": x, "bias": normal(C)}
        case "swiglu" | "geglu":
            return functools.partial(getattr(mk, op), dropout_p=0.3, seed=7), {"gate": x, "up": normal(2, 35, C)}
        case "rotary":
            angle, positions = normal(50, 6), torch.randint(50, (2, 35), device=DEVICE)

            def turn(q, k):
                return mk.rotary(q, k, angle.cos(), angle.sin(), positions=positions)

            return turn, {"q": x.view(2, 35, 5, 12), "k": normal(2, 35, 1, 12)}
        case "dropout":
            return lambda x: mk.dropout(x, 0.3, 7), {"x": x}
        case "embedding":
            tokens = torch.randint(9, (2, 35), device=DEVICE)
            return lambda weight: mk.embedding(tokens, weight), {"weight": normal(9, C)}
    raise AssertionError(op)


def run(call: Callable[..., Any], made: dict[str, Tensor], apart: int | None = None) -> list[Tensor]:
    """Return outputs and gradients; the rows of the upstream gradient of output `apart` lie apart."""
    leaves = {name: t.detach().requires_grad_() for name, t in made.items()}
    outputs = call(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [torch.linspace(-1, 1, y.numel(), device=DEVICE).bfloat16().to(y.dtype).view(y.shape) for y in outputs]
    upstream = [rows_apart(dy) if i == apart else dy for i, dy in enumerate(upstream)]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, list(leaves.values()), upstream)]


def rows_apart(t: Tensor) -> Tensor:
    """Return the same numbers with as many NaN after each row, or after each number where there is one axis."""
    if t.ndim == 1:
        return torch.stack((t, t.new_full(t.shape, torch.nan)), dim=1)[:, 0]
    return torch.cat((t, t.new_full(t.shape, torch.nan)), dim=-1)[..., : t.shape[-1]]


def test_these_are_the_ops_with_such_kernels():
    assert set(OPS) <= dispatch.FUSED_OPS


@pytest.mark.parametrize("op", OPS)
@pytest.mark.usefixtures("poisoned")
def test_same_input_gives_the_same_bits(op):
    with mk.backend("fused"):
        first, second = run(*case(op)), run(*case(op))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(t.isfinite().all() for t in first)


@pytest.fixture
def wide_rows(monkeypatch) -> None:
    """Let the norms take every row for one that is walked in a loop, 32 columns at a time."""
    for name, width in (
        ("MAX_FORWARD", 32),
        ("MAX_BACKWARD", 32),
        ("MAX_BACKWARD_WITH_MORE", 32),
        ("WIDE_BLOCK_C", 32),
    ):
        monkeypatch.setattr(module("row_norm"), name, width)


def assert_no_bit_depends_on_where_rows_lie(call: Callable[..., Any], made: dict[str, Tensor]) -> None:
    """Of one tensor at a time, upstream gradients too, so that no two of a call have the same strides."""
    with mk.backend("fused"):
        expected = run(call, made)
        others = [run(call, made | {name: rows_apart(t)}) for name, t in made.items()]
        others += [run(call, made, apart=i) for i in range(len(expected) - len(made))]
    for found in others:
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_where_the_rows_of_a_tensor_lie_changes_no_bit(op):
    assert_no_bit_depends_on_where_rows_lie(*case(op))


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.usefixtures("wide_rows")
def test_where_wide_rows_lie_changes_no_bit(op):
    call, made = case(op)
    five = {name: t[:1, :5] if t.ndim > 1 else t for name, t in made.items()}  # more would take the interpreter long
    assert_no_bit_depends_on_where_rows_lie(call, five)


LAYOUTS = {
    "of-a-sum": lambda y: y.new_full((), 0.5).expand(y.shape),
    "the-same-in-each-row": lambda y: torch.linspace(-1, 1, y.shape[-1], device=DEVICE).expand(y.shape),
    "columns-in-place-of-rows": lambda y: normal(*reversed(y.shape)).permute(*reversed(range(y.ndim))),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_how_an_upstream_gradient_lies_changes_no_bit(op, layout):
    call, made = case(op)
    leaves = [t.detach().requires_grad_() for t in made.values()]
    with mk.backend("fused"):
        outputs = call(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [layout(y) for y in outputs]
    found = torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)
    expected = torch.autograd.grad(outputs, leaves, [dy.contiguous() for dy in upstream])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.fixture(params=[True, False], ids=["kernel", "reference"])
def with_and_without_triton(request, monkeypatch) -> None:
    """Run a test with the kernels, and with what stands in for them where Triton cannot run."""
    if not request.param:
        monkeypatch.setattr(dispatch, "launches", lambda tensor: False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.usefixtures("with_and_without_triton")
def test_results_in_16_bits_are_rounded_once(op, dtype):
    """But for one in a hundred, whose truth lies half way between two numbers, they are the truth's nearest numbers."""
    call, made = case(op)
    if op in ("rms_norm", "layer_norm"):  # without the sum, which is rounded before it is normed
        call, made = getattr(mk, op), {name: made[name] for name in ("x", "weight", "bias")}
    narrow = {name: t.to(dtype) for name, t in made.items()}
    with mk.backend("fused"):
        found = run(call, narrow)
    with mk.backend("reference"):
        truth = run(call, {name: t.double() for name, t in narrow.items()})
    for ours, t in zip(found, truth, strict=True):
        assert (ours != t.to(dtype)).sum() <= 1 + t.numel() // 100


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.usefixtures("with_and_without_triton")
def test_what_is_normed_is_the_sum_that_is_returned(op):
    """To its last bit: the next layers add to that sum, and the backward pass reads it."""
    x, residual, weight = normal(70, 60).half(), normal(70, 60).half(), normal(60)
    with mk.backend("fused"):
        y, s = getattr(mk, op)(x, weight, residual=residual)
    with mk.backend("reference"):
        truth = getattr(mk, op)(s.double(), weight)
    assert (y != truth.half()).sum() <= y.numel() // 100


@pytest.mark.parametrize("programs", [1, 256, 300])
def test_partial_sums_of_all_programs_are_added(programs):
    """A GPU has more of them than the kernel adds at a time; an interpreted call has few."""
    partial, first, second = normal(2, programs, 40), normal(40), normal(40)
    module("column_sums").add_up(partial, first, second)
    torch.testing.assert_close(torch.stack((first, second)).double(), partial.double().sum(1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm", "relu"])
def test_a_program_sums_its_tiles_in_float32(op, monkeypatch):
    """In bfloat16 256 + 1 is 256: the first half of the rows has a gradient of 256, the second one of 1."""
    rows, one = 2048, torch.ones(8, device=DEVICE)
    monkeypatch.setattr(module("elementwise"), "num_sms", lambda device: 1)  # eight programs for 16 tiles
    monkeypatch.setattr(module("row_norm"), "num_sms", lambda device: 1)
    dy = one.bfloat16().repeat(rows, 1)
    dy[: rows // 2] = 256
    x, bias = torch.zeros_like(dy), one.clone().requires_grad_()
    with mk.backend("fused"):
        y = getattr(mk, op)(x, one, bias) if "norm" in op else getattr(mk, op)(x, bias)
    (found,) = torch.autograd.grad(y, bias, dy)
    assert torch.equal(found, one * (rows // 2 * 257))


@pytest.mark.parametrize("op", OPS)
def test_gradients_that_nobody_asked_for_change_nothing(op):
    """Frozen weights beside trained activations, and the reverse: each gradient alone is what it is with all."""
    call, made = case(op)
    with mk.backend("fused"):
        together = run(call, made)[-len(made) :]
        for name, expected in zip(made, together, strict=True):
            rest = {key: t for key, t in made.items() if key != name}
            alone = run(lambda name=name, rest=rest, **one: call(**one, **rest), {name: made[name]})[-1]
            assert torch.equal(alone, expected), name


@pytest.mark.parametrize("op", [op for op in OPS if op not in ("rotary", "dropout")])  # these two are linear
def test_second_derivative_is_an_error(op):
    """What the backward pass was given is a constant to it: a derivative of it would be wrong without a word."""
    call, made = case(op)
    leaf = next(iter(made.values())).requires_grad_()
    with mk.backend("fused"):
        outputs = call(**made)
        y = outputs[0] if isinstance(outputs, tuple) else outputs
        (first,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError):
            torch.autograd.grad(first.sum(), leaf)


@pytest.mark.parametrize("op", ["rotary", "dropout"])
def test_the_gradient_of_a_linear_op_has_the_op_as_its_derivative(op):
    """With y = A x the gradient is A^T dy, of which the derivative in dy along u is A u."""
    call, made = case(op)
    leaves, along = [t.requires_grad_() for t in made.values()], [normal(*t.shape) for t in made.values()]
    with mk.backend("fused"):
        outputs, expected = call(*leaves), call(*along)
    outputs, expected = (found if isinstance(found, tuple) else (found,) for found in (outputs, expected))
    upstream = [normal(*y.shape).requires_grad_() for y in outputs]
    gradients = torch.autograd.grad(outputs, leaves, upstream, create_graph=True)
    found = torch.autograd.grad(gradients, upstream, along)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def registered(op: str) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return the registered ops behind an op, each with arguments: bfloat16 beside float32 weights and statistics."""
    library, rows = torch.ops.minillm_kernels, (normal(4, 6).bfloat16().requires_grad_(), normal(4, 6).bfloat16())
    x, other, seed = *rows, torch.tensor(7, device=DEVICE)
    weight, bias, statistics = normal(6).requires_grad_(), normal(6).requires_grad_(), torch.rand(4, device=DEVICE)
    match op:
        case "rms_norm" | "layer_norm":
            mean = statistics if op == "layer_norm" else statistics.new_empty(0)
            forward, backward = getattr(library, f"{op}_forward"), getattr(library, f"{op}_backward")
            return [
                (forward, (x, weight, None, None, None, 1e-5, 0.0)),
                (forward, (x, weight, bias, other, seed, 1e-5, 0.3)),
                (backward, (other, None, other, weight.detach(), mean, statistics, None, 0.0, None)),
                (backward, (other, other, other, weight.detach(), mean, statistics, seed, 0.3, torch.float32)),
            ]
        case "relu" | "relu2" | "gelu":
            form = "tanh" if op == "gelu" else ""
            forward, backward = getattr(library, f"{op}_forward"), getattr(library, f"{op}_backward")
            return [
                (forward, (x, None, None, form, 0.0)),
                (forward, (x, bias, seed, form, 0.3)),
                (backward, (other, x.detach(), None, None, form, 0.0)),
                (backward, (other, x.detach(), bias.detach(), seed, form, 0.3)),
            ]
        case "swiglu" | "geglu":
            form = "none" if op == "geglu" else ""
            forward, backward = getattr(library, f"{op}_forward"), getattr(library, f"{op}_backward")
            return [
                (forward, (x, other, None, form, 0.0)),
                (forward, (x, other, seed, form, 0.3)),
                (backward, (other, x.detach(), other, None, form, 0.0)),
                (backward, (other, x.detach(), other, seed, form, 0.3)),
            ]
        case "rotary":
            q, k, angle = normal(2, 3, 2, 4).bfloat16().requires_grad_(), normal(2, 3, 1, 4).bfloat16(), normal(5, 2)
            positions = torch.randint(5, (2, 3), device=DEVICE)
            return [
                (library.rotary, (q, k, angle.cos(), angle.sin(), None, False, False)),
                (library.rotary, (q, k, angle.cos(), angle.sin(), positions, True, True)),
            ]
        case "dropout":
            return [(library.dropout, (x, seed, 0.3))]
        case "embedding":
            tokens = torch.randint(5, (2, 3), device=DEVICE)
            return [
                (library.embedding_forward, (tokens, normal(5, 6).bfloat16().requires_grad_())),
                (library.embedding_backward, (tokens, normal(2, 3, 6).bfloat16(), 5)),
            ]
    raise AssertionError(op)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.usefixtures("with_and_without_triton")
def test_registration_is_sound(op):
    """Schema, fake tensors, autograd."""
    with mk.backend("fused"):
        run(*case(op))  # imports the module
    for function, arguments in registered(op):
        # "test_aot_dispatch_dynamic" runs below on the whole op
        torch.library.opcheck(
            function, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
        )


@pytest.mark.parametrize("op", OPS)
def test_stand_in_without_triton_gives_the_same(op, monkeypatch):
    call, made = case(op)
    with mk.backend("fused"):
        expected = run(call, made)
        monkeypatch.setattr(dispatch, "launches", lambda tensor: False)
        found = run(call, made)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.usefixtures("with_and_without_triton")
def test_results_have_the_strides_that_the_fakes_promise(op):
    """With columns in place of rows side by side: the compiler plans with what the fake says."""
    with mk.backend("fused"):
        run(*case(op))  # imports the module
    for function, arguments in registered(op):
        turned = [a.detach().mT.contiguous().mT if isinstance(a, torch.Tensor) and a.ndim > 1 else a for a in arguments]
        torch.library.opcheck(function, tuple(turned), test_utils=("test_faketensor",))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does that
def test_compiles_as_one_graph(op):
    call, made = case(op)
    with mk.backend("fused"):
        plain = run(call, made)
        compiled = run(torch.compile(call, backend="aot_eager", fullgraph=True), made)
    assert all(torch.equal(a, b) for a, b in zip(compiled, plain, strict=True))
    torch._dynamo.reset()


RECORD = compile_report.read_record()
# One variant of each kernel, with its loads and stores of activations, 8 numbers of two bytes each.
WIDE = [
    ("rms_norm", "forward torch.bfloat16 C=128 HAS_RESIDUAL HAS_BIAS HAS_DROPOUT", 4, 4),
    ("rms_norm", "backward torch.bfloat16 C=128 HAS_DS", 3, 1),
    ("layer_norm", "forward torch.bfloat16 C=1024 plain", 2, 2),
    ("layer_norm", "backward torch.bfloat16 C=1024 HAS_DS", 3, 1),
    ("gelu", "forward none torch.bfloat16 flat", 2, 2),
    ("gelu", "backward tanh torch.bfloat16 bias", 2, 1),
    ("gelu", "backward none torch.bfloat16 bias dropout", 2, 1),
    ("gelu", "backward none torch.bfloat16 flat", 4, 2),
    ("swiglu", "backward torch.bfloat16 rows", 6, 4),
    ("swiglu", "forward torch.bfloat16 dropout", 4, 2),
    ("rotary", "torch.bfloat16 D=64 Hkv=12", 4, 4),
    ("rotary", "torch.bfloat16 D=80 Hkv=12", 4, 4),
    ("rotary", "torch.bfloat16 D=64 Hkv=12 INTERLEAVED HAS_POSITIONS INVERSE", 4, 4),
    ("dropout", "torch.bfloat16, C = 2048", 2, 2),
    ("embedding", "forward torch.bfloat16 C=1024", 2, 2),
    ("embedding", "backward, rows torch.bfloat16 C=1024", 4, 1),
]


@pytest.mark.parametrize("op, variant, loads, stores", WIDE, ids=lambda value: str(value))
def test_loads_and_stores_are_16_bytes_wide_on_hopper(op, variant, loads, stores):
    """At least as many 16-byte accesses as the activations need, by the record of the compile report."""
    (row,) = [r for r in RECORD["rows"] if (r["op"], r["variant"], r["target"]) == (op, variant, "sm_90")]
    assert row["loads"].get("128", 0) >= loads and row["stores"].get("128", 0) >= stores, row


SEED = torch.tensor(7)
LAUNCHED = {"rms_norm": 3, "layer_norm": 3, "relu": 3, "gelu none": 3, "gelu tanh": 3, "relu2": 3, "swiglu": 2}
LAUNCHED |= {"geglu none": 2, "geglu tanh": 2, "rotary": 1, "dropout": 1, "embedding": 3}  # kernels of each


def launch_all(op: str, form: str, dtype: torch.dtype) -> None:
    """Call the launchers of an op in the ways that are on record."""
    x, C = torch.zeros(4, 1024, dtype=dtype), 1024
    match op:
        case "embedding":
            embedding = module("embedding.fused")
            embedding.forward(torch.zeros(4, dtype=torch.int64), x)
            embedding.backward(torch.zeros(300, dtype=torch.int64), x.new_zeros(300, C), 4)
        case "relu" | "gelu" | "relu2":
            elementwise, function = module("elementwise"), module(f"{op}.fused").FUNCTIONS[form]
            for bias, seed in ((None, None), (torch.zeros(C), None), (None, SEED), (torch.zeros(C), SEED)):
                y = elementwise.unary_forward(x, bias, seed, function, 0.1)
                elementwise.unary_backward(y, x, bias, seed, function, 0.1)
        case "swiglu" | "geglu":
            elementwise, function = module("elementwise"), module(f"{op}.fused").FUNCTIONS[form]
            halves = torch.zeros(4, 2 * C, dtype=dtype).chunk(2, dim=1)
            for (gate, up), seed in (((x, x), None), (halves, None), (halves, SEED)):
                y = elementwise.gated_forward(gate, up, seed, function, 0.1)
                elementwise.gated_backward(y, gate, up, seed, function, 0.1)
        case "rotary":
            turn = module("rotary.fused")._op
            for D, Hkv in ((64, 12), (80, 12), (128, 12), (64, 2), (80, 2), (128, 2)):
                q, k, table = x.new_zeros(1, 4, 12, D), x.new_zeros(1, 4, Hkv, D), torch.zeros(4, D // 2)
                turn(q, k, table, table, None, False, False)
            q, table = x.new_zeros(1, 4, 12, 64), torch.zeros(4, 32)
            for positions in (None, torch.zeros(1, 4, dtype=torch.int64)):
                for interleaved, inverse in ((False, False), (False, True), (True, False), (True, True)):
                    turn(q, q.clone(), table, table, positions, interleaved, inverse)
        case "dropout":
            for width in (8, 128, 1024, 2048):
                module("dropout.fused")._op(x.new_zeros(4, width), SEED, 0.1)
        case _:
            row_norm, centre = module("row_norm"), op == "layer_norm"
            for width in (1024, 4096) if dtype == torch.bfloat16 else (1024,):  # float32 is on record at one
                x, weight = torch.zeros(4, width, dtype=dtype), torch.zeros(width)
                for ds, residual, bias, seed in ((None,) * 4, (x, None, None, None), (x, x, weight, SEED)):
                    y, s, mean, rstd = row_norm.forward(x, weight, bias, residual, seed, 1e-6, 0.1, centre)
                    made, bias_dtype = s if s.numel() else x, None if bias is None else bias.dtype
                    row_norm.backward(y, ds, made, weight, mean, rstd, seed, 0.1, bias_dtype, centre)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("which", LAUNCHED)
def test_what_is_launched_is_on_record(monkeypatch, which, dtype):
    """The same kernel, dtypes, constants, threads and registers; nothing runs, so sizes may be a GPU's."""
    op, _, form = which.partition(" ")
    launched: list[tuple[Any, tuple[Any, ...], tuple[int, int | None], dict[str, Any]]] = []

    def launch(kernel, grid, *arguments, threads, registers=None, **constants):
        launched.append((kernel, arguments, (threads // 32, registers), constants))

    for name in ("row_norm", "elementwise", "column_sums", "rotary.fused", "dropout.fused", "embedding.fused"):
        monkeypatch.setattr(module(name), "launch", launch)
    monkeypatch.setattr(dispatch, "launches", lambda tensor: True)
    launch_all(op, form, dtype)
    variants = [v for v in module(f"{op}.fused").variants() if "sm_90" in v.targets]
    assert len({kernel.fn.__name__ for kernel, *_ in launched}) == LAUNCHED[which]
    for kernel, arguments, size, constants in launched:
        given = dict(zip(kernel.arg_names, arguments, strict=False))
        fixed = constants | {name: None for name, value in given.items() if value is None}
        types = {name: TRITON_TYPE[value.dtype] for name, value in given.items() if isinstance(value, Tensor)}
        same = [v for v in variants if v.kernel is kernel and v.constants == fixed]
        same = [v for v in same if (v.num_warps, v.max_registers) == size]
        assert any(types.items() <= v.signature.items() for v in same), (kernel.fn.__name__, types, size, fixed)


@pytest.mark.parametrize("form", ["none", "tanh"])
@pytest.mark.parametrize("switches, tensors", [("bias", 2), ("bias dropout", 3)])
def test_with_a_bias_the_next_tiles_are_on_their_way_while_one_is_worked_on(form, switches, tensors):
    """Before a tile is read there is no wait for all copies, but for all save those of the tile that follows."""
    found = compile_report.machine_code_of("gelu", f"backward {form} torch.bfloat16 {switches}", "sm_90")
    waits = [line.split("SB0,")[1].split()[0] for line in found["sass"].splitlines() if "DEPBAR.LE SB0" in line]
    assert waits == [hex(tensors), "0x0"]  # in the loop (dy, x and the seed), and after it
