r"""Muon: each weight matrix moves by the orthogonal matrix nearest to its running gradient. AdamW for all else.

For a matrix W (rows, columns) with gradient G, momentum mu, learning rate eta and decay lambda:

    M <- mu M + (1 - mu) G                                                     (1)
    U  = mu M + (1 - mu) G                                                     (2)  Nesterov's look ahead
    O  = P^5(U / |U|),   P(X) = a X + (b X X^T + c (X X^T)^2) X                (3)  Newton-Schulz
    W <- (1 - eta lambda) W - eta sqrt(max(1, rows / columns)) O               (4)

(3) acts on the singular values alone: p(s) = a s + b s^3 + c s^5 with (a, b, c) = (3.4445, -4.7750, 2.0315) brings each
s in (0.003, 1] to about 1 in five steps, between 0.68 and 1.21, which is near enough. It may be computed in bfloat16,
because an error in O is an error of the step and not of the weights. The factor in (4) gives updates of all shapes the
same size per row.

(3) takes a whole matrix: where matrices are cut over processes (FSDP2), `muon_sharded.py` brings them together.

Matrices of one shape are stacked and orthogonalised together: a small model has dozens of products that are too small
to fill a device one by one.

Source: Jordan et al. (2024), kellerjordan.github.io/posts/muon; constants as there and in torch.optim.Muon, the truth
that the tests compare with.

Read next: `optim.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from minillm.checkpoint.sharded import is_sharded

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a, b, c: the steepest slope at 0 that still ends near 1
ITERATIONS = 5
EPS = 1e-7  # smallest norm that is divided by


class Muon(AdamW):
    """Muon for the groups that are marked `matrices`; the others it steps as AdamW, from which it inherits.

    Args:
        groups: parameter groups; one with "matrices": True holds parameters of two axes and has a "momentum".
        lr, betas, eps, weight_decay, fused: as in AdamW; `lr` and `weight_decay` of a group hold for matrices too.
        product_dtype: of the products in (3): bfloat16 where the device is fast at it, else float32.
    Raises:
        ValueError: a parameter among the matrices has not two axes.

    Cost: per step and matrix 5 * (4 m^2 n + 2 m^3) operations with m <= n the sizes, beside AdamW's two passes.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, product_dtype: torch.dtype, **options: Any) -> None:
        super().__init__(groups, **options)
        self.product_dtype = product_dtype
        # AdamW's fused kernel can skip a float16 step that overflowed by itself; here the scaler has to decide.
        self._step_supports_amp_scaling = False
        for group in self.param_groups:
            for parameter in group["params"] if group.setdefault("matrices", False) else ():
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices, got a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move all parameters that have a gradient. A closure is not taken: nothing here evaluates twice."""
        groups = self.param_groups
        for group in groups:
            if group["matrices"]:
                self._step_matrices(group)
        self.param_groups = [group for group in groups if not group["matrices"]]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _step_matrices(self, group: dict[str, Any]) -> None:
        """Move the matrices of a group, all of one shape at a time."""
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                momentum = self._momentum(parameter).lerp_(parameter.grad, 1 - group["momentum"])  # (1)
                ahead = parameter.grad.lerp(momentum, group["momentum"])  # (2)
                alike[parameter.shape].append((parameter, ahead))
        for (rows, columns), pairs in alike.items():
            directions = self._directions([ahead for _, ahead in pairs])  # n of (rows, columns)
            step = group["lr"] * max(1.0, rows / columns) ** 0.5
            for (parameter, _), direction in zip(pairs, directions, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction.to(parameter.dtype), alpha=-step)  # (4)

    def _directions(self, matrices: list[Tensor]) -> Iterable[Tensor]:
        """Return equation (3) of matrices of one shape, which may be cut over processes."""
        if not is_sharded(matrices[0]):
            return orthogonalised(matrices, self.product_dtype)
        from minillm.training.muon_sharded import orthogonalised_by_shares

        shards: Any = matrices
        return orthogonalised_by_shares(shards, self.product_dtype, orthogonalised)

    def _momentum(self, parameter: Tensor) -> Tensor:
        """Return M of a matrix, zeros at first."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def orthogonalised(matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return equation (3) of n matrices of one shape.

    Args:
        matrices: each (rows, columns).
        dtype: of the products.
    Returns:
        (n, rows, columns) in `dtype`; the singular values of each are between 0.68 and 1.21, or less where they were
        below 0.003 of the norm.

    >>> orthogonalised([torch.eye(3) * 7], torch.float32)[0].diagonal().round(decimals=1)
    tensor([0.7000, 0.7000, 0.7000])
    """
    a, b, c = COEFFICIENTS
    X = torch.stack(list(matrices)).to(dtype)  # (n, rows, columns)
    tall = X.shape[1] > X.shape[2]
    if tall:
        X = X.mT  # X X^T is then the smaller of the two squares
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        square = torch.bmm(X, X.mT)  # (n, m, m), m the smaller size
        X = torch.baddbmm(X, torch.baddbmm(square, square, square, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X
