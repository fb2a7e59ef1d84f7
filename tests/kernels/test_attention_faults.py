"""Each fault that is put into the source of an attention kernel is found by a named check.

A test that passes says little until it is seen to fail: here the text of a kernel's file is changed in one place, the
faulty file is loaded in place of the right one, and the check that is named beside the fault has to fail.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from attention_cases import assert_close_to_truth, inputs, moved, numbers, run_fused
from minillm_kernels.attention import backward, decode, forward, fused, scores
from planting import INTERPRETED
from triton.runtime.errors import InterpreterError

pytestmark = INTERPRETED
TILES = (1, 20, 20, 1, 1, 16)  # two tiles of 16 each way, the second ragged


def close(shape, o):
    """The check of `test_fused_is_as_close_to_truth_as_reference`."""
    tensors, dy = inputs(shape, torch.float32)
    assert_close_to_truth("fused", tensors, dy, o)


def without_options():
    close(TILES, {})


def causal():
    close(TILES, {"causal": True})


def skewed():
    close((1, 20, 37, 1, 1, 16), {"causal": True})


def grouped():
    close((1, 5, 5, 4, 2, 16), {})


def dropped():
    close((1, 5, 5, 2, 2, 16), {"dropout_p": 0.4, "seed": 3})


def softcapped():
    close((1, 5, 5, 1, 1, 16), {"softcap": 0.7})


def windowed():
    close((1, 40, 40, 1, 1, 16), {"window": (3, 3)})


def packed():
    close((1, 7, 7, 1, 1, 16), {"cu_seqlens_q": numbers(0, 3, 7), "cu_seqlens_k": numbers(0, 1, 7), "causal": True})


def biased():
    tensors, dy = inputs((2, 5, 5, 2, 2, 16), torch.float32)
    bias = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    assert_close_to_truth("fused", [*tensors, bias], dy, {})


def empty_row():
    """The check of `test_query_that_sees_nothing_gets_zeros_and_gives_no_gradient`."""
    tensors, dy = inputs((2, 5, 5, 1, 1, 16), torch.float32)
    for x in run_fused(tensors, dy, {"key_stop": numbers(5, 0)}):
        assert x.isfinite().all()
        assert (x[1] == 0).all()


def decoded():
    """The check of `test_decoding_is_as_close_to_truth_as_reference`."""
    (q, k, v), _ = inputs((1, 1, 70, 2, 1, 16), torch.float32, requires_grad=False)
    with torch.no_grad():
        y = fused.decode(*(moved(x) for x in (q, k, v)), *[None] * 6, None, None, None, 0.0, 0.25).cpu()
    weights = (torch.einsum("bthd,bsd->bhts", q, k[:, :, 0]) * 0.25).softmax(-1)
    torch.testing.assert_close(y, torch.einsum("bhts,bsd->bthd", weights, v[:, :, 0]), rtol=0, atol=1e-6)


# name: the file, its right text, the fault, the check that finds it
FAULTS = {
    "wrong-sign": (backward, "p * (dp - delta[None, :])", "p * (dp + delta[None, :])", without_options),
    "missing-edge-mask": (scores, "    seen = j < stop\n", "    seen = j < stop + 16\n", without_options),
    "unscaled-dq": (backward, "    dq *= terms.scale  # (13)\n", "", without_options),
    "unscaled-dk": (backward, "    dk *= terms.scale  # (13)\n", "", without_options),
    "stale-maximum": (forward, "w = w * rescale +", "w = w +", without_options),
    "unwritten-tail": (
        scores,
        "mask=rows & columns)\n\n\n@",
        "mask=rows & columns & (start < 16))\n\n\n@",
        without_options,
    ),
    "dropout-differs-in-backward": (
        backward,
        "kept_pairs(i, j, first_key, batch",
        "kept_pairs(i, j, first_key + 8, batch",
        dropped,
    ),
    "undropped-gradient": (backward, "z = tl.where(kept, p, 0.0)", "z = p", dropped),
    "wrong-head": (forward, "head // sizes.group", "head % (sizes.num_heads // sizes.group)", grouped),
    "one-head-of-a-group": (
        backward,
        "for member in tl.range(0, sizes.group, disable_licm=True):",
        "for member in range(1):",
        grouped,
    ),
    "causal-one-off": (scores, "near = distance <= see.right\n", "near = distance < see.right\n", causal),
    "unmasked-diagonal": (scores, "_, end, full_begin, _ = ", "_, end, full_begin, full_end = ", causal),
    "skipped-tile": (scores, "begin, full_begin = start - shift", "begin, full_begin = last - shift", skewed),
    "window-ends-early": (scores, "end = tl.minimum(last - shift", "end = tl.minimum(start - shift", windowed),
    "softcap-not-derived": (backward, "draw *= 1.0 - t * t", "draw *= 1.0", softcapped),
    "packed-ends-not-level": (
        scores,
        "shift = tl.load(rows + 2 * sizes.num_queries",
        "shift = 0 * tl.load(rows",
        packed,
    ),
    "bias-of-one-row-only": (backward, "range(num_shared_rows * num_shared_heads)", "range(num_shared_heads)", biased),
    "empty-row-is-nan": (forward, "factor = 1.0 / tl.where(empty, 1.0, w)", "factor = 1.0 / w", empty_row),
    "split-not-rescaled": (decode, "factor = tl.exp2(tl.load(part_m_ptr + part) - m)", "factor = 1.0", decoded),
}
KERNELS_OF = {
    scores: (forward, backward, decode),
    forward: (decode,),
    backward: (),
    decode: (),
}


@pytest.fixture(autouse=True)
def poisoned():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def loaded(module, monkeypatch, tmp_path, source):
    """A module made of other text, under the name of the right one for as long as the test lasts."""
    path = tmp_path / f"{module.__name__.rpartition('.')[2]}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(module.__name__, path)
    faulty = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, faulty)
    spec.loader.exec_module(faulty)
    return faulty


def put_in_place(module, monkeypatch, tmp_path, source):
    """Load a faulty file, and again the files whose kernels call its functions; hand their kernels to the launchers."""
    for each in (module, *KERNELS_OF[module]):
        text = source if each is module else Path(each.__file__).read_text()
        if each is decode:  # its op has its name for good: only the kernels are new
            text = text[: text.index("def decodes(")]
        fresh = loaded(each, monkeypatch, tmp_path, text)
        for name in dir(fresh):
            if name.startswith("_attention_") and name.endswith("_kernel"):
                for launcher in (fused, decode):
                    if hasattr(launcher, name):
                        monkeypatch.setattr(launcher, name, getattr(fresh, name))


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(fault, monkeypatch, tmp_path):
    module, right, wrong, check = FAULTS[fault]
    source = Path(module.__file__).read_text()
    assert right in source, "the kernel has changed: bring the fault up to date"
    put_in_place(module, monkeypatch, tmp_path, source.replace(right, wrong))
    # a division by zero is an error of the interpreter's before it is a NaN in a result
    with pytest.raises((AssertionError, InterpreterError) if check is empty_row else AssertionError):
        check()


@pytest.mark.parametrize("module", KERNELS_OF, ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_file_without_a_fault_passes(module, monkeypatch, tmp_path):
    """Loading it anew is not what the checks find."""
    put_in_place(module, monkeypatch, tmp_path, Path(module.__file__).read_text())
    for check in (causal, grouped, empty_row, decoded):
        check()
