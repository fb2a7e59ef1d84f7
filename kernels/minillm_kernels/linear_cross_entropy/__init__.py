"""linear_cross_entropy: the output layer and its loss in one, so that all the logits never exist at once.

Read next: `reference.py`, then `chunks.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm_kernels import checks, dispatch
from minillm_kernels.cross_entropy import Reduction
from minillm_kernels.cross_entropy.targets import check_count, check_options, check_targets
from minillm_kernels.linear_cross_entropy import chunks, reference

__all__ = ["linear_cross_entropy"]


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: Reduction = "sum",
    memory_budget: int | None = None,
    num_targets: int | None = None,
) -> Tensor:
    """Take the negative log-probability of each target under the logits hidden @ weight^T + bias.

        loss = cross_entropy(hidden @ weight.T + bias, targets, the same options)

    Ignored targets cost no product: masked LM pays for its masked positions only.

    Args:
        hidden: (..., C), any floating dtype; the product is taken in it.
        weight: output weight (V, C), any floating dtype: float32 beside a bfloat16 `hidden` is the usual case.
        targets: (...) int64, each in [0, V) or `ignore_index`.
        bias: (V,), added to the logits; None for none.
        ignore_index, label_smoothing, z_loss, softcap, reduction: as in `cross_entropy`.
        memory_budget: bytes for a chunk's logits and what is made of them, at least one row's;
            None: `chunks.default_budget`. The result depends on it only by rounding.
        num_targets: how many targets are not `ignore_index`, where the caller knows it: a GPU is then not waited for.
            None: they are counted.
    Returns:
        float32 (float64 for float64 `hidden`): () or the shape of `targets`, in nats.
    Raises:
        ValueError: a shape, a device or an option; a target outside of [0, V), with its position, or `num_targets`
            that is another number. The latter two are looked for on the CPU; with MINILLM_CHECKED=1 in the environment
            everywhere, which waits for the device. A kernel that was not told to look returns NaN for a wrong target,
            and for a `num_targets` that is too small leaves rows out; one too large is a device-side assertion, but
            where it is the number of rows: then those that are ignored count.
        TypeError: a dtype, or an `ignore_index`, `memory_budget` or `num_targets` that is no int.

    Cost: for N targets that are not ignored 2 * N * V * C operations forward and twice that for the gradients, which
        are computed beside the loss (with reduction="none": in the backward pass, after the logits once more: 8 in
        place of 6): bound by compute. Holds the gradients, a chunk, and a copy of `weight` where its dtype is another
        or, for the kernel, V no multiple of 16.
    Source: Wijmans et al. (2024), arXiv:2411.09009, and Hsu et al. (2024), arXiv:2410.10989, do this in kernels.

    >>> hidden, weight = torch.zeros(3, 2), torch.ones(4, 2)
    >>> linear_cross_entropy(hidden, weight, torch.tensor([0, 3, -100]), reduction="mean").exp()
    tensor(4.)
    """
    checks.floating("hidden", hidden)
    checks.floating("weight", weight)
    checks.rank("weight", weight, "V C")
    V, C = weight.shape
    checks.shape("hidden", hidden, (*hidden.shape[:-1], C), "with the columns of weight")
    checks.shape("targets", targets, tuple(hidden.shape[:-1]), "one target per row of hidden")
    if bias is not None:
        checks.floating("bias", bias)
        checks.shape("bias", bias, (V,), "one per row of weight")
    check_options(targets, V, ignore_index, label_smoothing, z_loss, softcap, reduction)
    checks.same_device("hidden", hidden, weight=weight, targets=targets, bias=bias)
    if memory_budget is not None:
        checks.whole("memory_budget", memory_budget)
    if memory_budget is not None and memory_budget < 1:
        raise ValueError(f"memory_budget must be at least 1 byte, got {memory_budget}; None for the default")
    if num_targets is not None:
        checks.whole("num_targets", num_targets)
    if num_targets is not None and not 0 <= num_targets <= targets.numel():
        raise ValueError(f"num_targets must be from 0 to {targets.numel()}, the number of targets, got {num_targets}")
    if not torch.compiler.is_compiling():
        check_targets(targets, V, ignore_index)
        check_count(targets, ignore_index, num_targets)

    rows, flat = hidden.reshape(targets.numel(), C), targets.reshape(-1)  # (N, C), (N,)
    options = (ignore_index, label_smoothing, z_loss, softcap)
    match dispatch.choose("linear_cross_entropy", hidden):
        case "torch" if dispatch.in_forward_mode():
            raise RuntimeError(
                "linear_cross_entropy has no forward-mode derivative; use cross_entropy(hidden @ weight.T, targets)"
            )
        case "reference":
            losses = reference.linear_cross_entropy(rows, weight, bias, flat, options)
            result = losses.view(targets.shape) if reduction == "none" else losses.sum()
        case name if reduction == "none":
            found = chunks.losses(rows, weight, bias, flat, options, memory_budget, num_targets, name == "fused")
            result = found.view(targets.shape)
        case name:
            result = chunks.total(rows, weight, bias, flat, options, memory_budget, num_targets, name == "fused")
    return result / (targets != ignore_index).sum().clamp(min=1) if reduction == "mean" else result
