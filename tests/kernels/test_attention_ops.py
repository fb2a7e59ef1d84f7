"""The attention kernels as a part of PyTorch: registered, compiled, recomputed, sharded, counted, derived once."""

import minillm_kernels as mk
import pytest
import torch
from attention_cases import DEVICE, SMALL, inputs, moved, prepared, run, run_fused
from minillm_kernels import dispatch
from minillm_kernels.attention import configs, fused
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.usefixtures("empty_is_nan")


def op_arguments(option, dtype=torch.float32):
    tensors, dy, o = prepared(option, dtype)
    q, k, v, *bias = (moved(x).requires_grad_() for x in tensors)
    left, right = o.get("window", (None, None))
    right = 0 if o.get("causal") else right
    masks = [o.get(name) for name in ("key_start", "key_stop", "segments", "cu_seqlens_q", "cu_seqlens_k", "prefix")]
    seed = torch.tensor(o["seed"]) if "seed" in o else None
    found = [x if x is None else x.to(DEVICE) for x in (o.get("alibi_slopes"), *masks, seed)]
    rest = (left, right, o.get("softcap"), o.get("dropout_p", 0.0), 0.3)
    return (q, k, v, bias[0] if bias else None, *found, *rest), moved(dy)


@pytest.mark.parametrize(
    "option, dtype", [("packed-cross", torch.float32), ("softcap-and-bias", torch.bfloat16)], ids=str
)
def test_ops_pass_opcheck(option, dtype):
    torch.use_deterministic_algorithms(False)  # opcheck compares runs of its own
    (q, *others), dy = op_arguments(option, dtype)
    q = q.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()  # the results have other strides
    arguments = (q, *others)
    torch.library.opcheck(fused.attention_forward, arguments)
    y, lse = fused.attention_forward(*arguments)
    plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    everything = [True, True, True, arguments[3] is not None]
    for wanted, joined in ((everything, False), ([False, True, False, False], False), ([False] * 4, False)):
        torch.library.opcheck(fused.attention_backward, (dy, y.detach(), lse.detach(), *plain, wanted, joined))


def test_decode_op_passes_opcheck():
    torch.use_deterministic_algorithms(False)
    (q, k, v), _ = inputs((2, 3, 40, 2, 1, 16), torch.bfloat16, requires_grad=False)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)  # the result has other strides
    arguments = (moved(q), moved(k), moved(v), *[None] * 6, None, 0, None, 0.0, 0.3)
    torch.library.opcheck(fused.decode, arguments)


@pytest.mark.parametrize("option", ["packed-cross", "softcap-and-bias"])
def test_compiles_whole(option):
    torch.use_deterministic_algorithms(False)
    tensors, dy, o = prepared(option, torch.float32)
    o = {key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for key, value in o.items()}
    tensors, dy = [moved(x) for x in tensors], moved(dy)
    with mk.backend("fused"):
        torch._dynamo.reset()
        compiled = torch.compile(mk.attention, backend="aot_eager", fullgraph=True)
        for x, y in zip(run(mk.attention, tensors, dy, o), run(compiled, tensors, dy, o), strict=True):
            assert torch.equal(x, y)


def test_works_under_activation_checkpointing():
    tensors, dy = inputs(SMALL, torch.float32)
    o = {"causal": True, "dropout_p": 0.3, "seed": 5}

    def recomputed(*tensors, **o):
        return checkpoint(lambda *t: mk.attention(*t, **o), *tensors, use_reentrant=False)

    with mk.backend("fused"):
        there = [moved(x) for x in tensors]
        for x, y in zip(run(mk.attention, there, moved(dy), o), run(recomputed, there, moved(dy), o), strict=True):
            assert torch.equal(x, y)


class Projected(torch.nn.Module):
    """Attention between two linear maps, as a layer has it."""

    def __init__(self):
        super().__init__()
        self.qkv, self.output = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 1, 16).unbind(2)
        return (
            self.output(mk.attention(q, k, v, causal=True).flatten(2)) * 1.0
        )  # FSDP2 warns of a result that is a view


def test_works_under_fsdp2(tmp_path):
    torch.use_deterministic_algorithms(False)  # the linear maps' products
    distributed.init_process_group(
        "nccl" if DEVICE == "cuda" else "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        torch.manual_seed(0)
        model = Projected().to(DEVICE)
        x = torch.randn(2, 5, 16).to(DEVICE)
        with mk.backend("fused"):
            model(x).sum().backward()
            expected = [p.grad.clone() for p in model.parameters()]
            model.zero_grad()
            fully_shard(model, mesh=init_device_mesh(DEVICE, (1,)))
            model(x).sum().backward()
        for p, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad.full_tensor(), gradient)
    finally:
        distributed.destroy_process_group()


def test_operations_are_counted():
    (q, k, v), dy = inputs((2, 5, 7, 4, 2, 8), torch.float32)
    with mk.backend("fused"), FlopCounterMode(display=False) as counter:
        mk.attention(*(moved(x).requires_grad_() for x in (q, k, v))).backward(moved(dy))
    assert counter.get_total_flops() == 3.5 * 4 * 2 * 4 * 5 * 7 * 8


def test_operations_of_decoding_are_counted():
    (q, k, v), _ = inputs((2, 1, 40, 4, 2, 8), torch.float32, requires_grad=False)
    with mk.backend("fused"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        mk.attention(moved(q), moved(k), moved(v))
    assert counter.get_total_flops() == 2 * 2 * 2 * 4 * 1 * 40 * 8


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)], ids=["q", "k", "v", "k-v"])
def test_operations_of_gradients_that_nobody_wants_are_not_counted(wanted):
    """Scores and dP are made for any of them, two products, and one more for each."""
    (q, k, v), dy = inputs((2, 5, 7, 4, 2, 8), torch.float32)
    there = [moved(x).requires_grad_(bool(one)) for x, one in zip((q, k, v), wanted, strict=True)]
    with mk.backend("fused"), FlopCounterMode(display=False) as counter:
        mk.attention(*there).backward(moved(dy))
    assert counter.get_total_flops() == (2 + 2 + sum(wanted)) * 2 * 2 * 4 * 5 * 7 * 8


KERNELS_FOR = {  # which of q, k, v, bias learn -> the kernels that a backward pass launches, beside that of delta
    "q": {"dq"},
    "k": {"dk_dv"},
    "v": {"dk_dv"},
    "bias": {"dbias"},
    "q-bias": {"dq", "dbias"},
    "k-v": {"dk_dv"},
    "q-v": {"dq", "dk_dv"},
    "q-k-v-bias": {"dq", "dk_dv", "dbias"},
}


@pytest.mark.parametrize("learn", KERNELS_FOR)
def test_only_the_kernels_of_wanted_gradients_run_and_give_the_same_bits(learn, monkeypatch):
    tensors, dy, o = prepared("softcap-and-bias", torch.float16)
    expected = dict(zip(("q", "k", "v", "bias"), run_fused(tensors, dy, o)[1:], strict=True))
    ran, launch = [], configs.run
    monkeypatch.setattr(configs, "run", lambda kernel, *rest: ran.append(kernel) or launch(kernel, *rest))
    names = learn.split("-")
    there = {name: moved(x) for name, x in zip(expected, tensors, strict=True)}
    wanted = [there[name].requires_grad_() for name in names]
    with mk.backend("fused"):
        y = mk.attention(
            there["q"],
            there["k"],
            there["v"],
            bias=there["bias"],
            **{key: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for key, x in o.items()},
        )
        gradients = torch.autograd.grad(y, wanted, moved(dy))
    assert sorted(ran) == sorted({"forward"} | KERNELS_FOR[learn])
    for name, found in zip(names, gradients, strict=True):
        assert torch.equal(found.cpu(), expected[name]), name


def test_second_derivative_is_an_error():
    tensors, dy = inputs(SMALL, torch.float32)
    there = [moved(x).requires_grad_() for x in tensors]
    with mk.backend("fused"):
        y = mk.attention(*there)
    (dq,) = torch.autograd.grad(y, there[0], moved(dy).requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError):
        dq.sum().backward()


@pytest.mark.parametrize("option", ["causal-fewer-keys", "packed-cross", "everything"])
def test_ops_without_triton_do_the_reference(option, monkeypatch):
    """On a CPU where nothing interprets the kernels."""
    torch.use_deterministic_algorithms(False)
    tensors, dy, o = prepared(option, torch.float32)
    expected = run_fused(tensors, dy, o)
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "launches", lambda tensor: False)
        ours = run_fused(tensors, dy, o)
        arguments, _ = op_arguments(option)
        lse = fused.attention_forward(*arguments)[1]
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse, fused.attention_forward(*arguments)[1])
