"""What the tests of attention's Hopper kernel share: how it is run, and when it is close enough to the truth.

Where there is no GPU of compute capability 9.0 it runs in `gluon_emulator.py`; where there is one, there and on it.
"""

import torch
from attention_cases import sees, truth
from gluon_emulator import Emulated
from minillm_kernels.attention import hopper, hopper_launcher, reference
from minillm_kernels.attention.masks import Masks

ON_GPU = torch.cuda.is_available() and not hopper_launcher.device_obstacle(torch.device("cuda"))
KERNEL = hopper._attention_forward_hopper_kernel
LOG2E = 1.4426950408889634


def masks_of(o):
    """Masks of the options of a call."""
    names = ("key_start", "key_stop", "segments", "cu_seqlens_q", "cu_seqlens_k", "prefix")
    found = {name: o.get(name) for name in names}
    return Masks(causal=o.get("causal", False), window=o.get("window", (None, None)), **found)


def attend(monkeypatch, tensors, o, where="emulated", launch=None, seed=0, late=True, kernel=KERNEL):
    """y and lse on the CPU, of q, k, v there; strides are kept."""
    q, k, v = (x.detach() for x in tensors)
    masks = masks_of(o)
    with monkeypatch.context() as patch:
        if launch is not None:
            patch.setattr(hopper_launcher, "launch", lambda D: hopper_launcher.Launch(*launch))
        if where == "emulated":
            patch.setattr(hopper, "_attention_forward_hopper_kernel", Emulated(kernel, seed, late))
        else:
            q, k, v = (on_gpu(x) for x in (q, k, v))
            masks = masks_of({n: x.cuda() if isinstance(x, torch.Tensor) else x for n, x in o.items()})
            assert not hopper_launcher.obstacle(q, k, v, masks)
        y, lse = hopper_launcher.forward(q, k, v, masks, o.get("scale", q.shape[-1] ** -0.5))
    return y.cpu(), lse.cpu()


def on_gpu(x):
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda").copy_(x)


def assert_right(found, tensors, o):
    """Fail unless y is as near to the float64 truth as the reference's, and lse as near as float32 can be."""
    y, lse = found
    q, k, v = (x.detach() for x in tensors)
    expected, _ = truth(q.double(), k.double(), v.double(), **o)
    scale = o.get("scale", q.shape[-1] ** -0.5)
    plain = reference.attention(q, k, v, masks_of(o), None, None, None, 0.0, None, scale)
    assert y.dtype == q.dtype and y.shape == expected.shape
    allowed = 2 * (plain - expected).abs().max() + 4 * torch.finfo(q.dtype).eps * expected.abs().max()
    assert (y - expected).abs().max() <= allowed, f"y: {(y - expected).abs().max():.1e} > {allowed:.1e}"
    expected = true_lse(q, k, scale, o)
    assert lse.dtype == torch.float32 and lse.shape == expected.shape
    assert torch.equal(lse == torch.inf, expected == torch.inf)
    finite = expected != torch.inf
    if finite.any():
        allowed = 1e-5 * max(1.0, float(expected[finite].abs().max()))
        assert (lse - expected)[finite].abs().max() <= allowed


def true_lse(q, k, scale, o):
    """(B, H, T) in float64, in units of log2(e), inf where a query sees nothing."""
    (B, T, H, _), (S, Hkv) = q.shape, k.shape[1:3]
    score = torch.einsum("bthd,bshd->bhts", q.double(), k.double().repeat_interleave(H // Hkv, 2)) * scale
    seen = torch.tensor([[[[sees(b, i, j, T, S, o) for j in range(S)] for i in range(T)]] for b in range(B)])
    lse = score.masked_fill(~seen, -torch.inf).logsumexp(-1) * LOG2E
    return lse.masked_fill(lse == -torch.inf, torch.inf)
