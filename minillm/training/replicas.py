r"""Data parallelism: every process holds the whole model, and the gradients of all of them are summed.

    g = sum over ranks r of g_r,     g_r = d/dw [ sum over the micro-batches i of r of total_i / N ]

N counts the targets of all ranks (`gradient.py`), so the sum is the gradient of the global batch whatever share of the
targets each rank has; a mean over ranks of their means would be another number. Micro-batches before the last add to
`.grad` without communication. In the last one's backward pass a bucket of gradients is on its way as soon as all of
them are there, while earlier layers are still being differentiated:

    backward     | layer 3 | layer 2 | layer 1 | layer 0 |
    all-reduce             | bucket 0 (3, 2)   | bucket 1 (1, 0) |

All ranks send buckets in the same order, also where one of them had no use for some parameter: a collective that meets
another one of a different bucket would add what does not belong together.

Why not torch's DistributedDataParallel: it divides by the number of ranks and wraps the forward pass of one module,
while an objective here calls the model, its head and its output weight apart; and gradual unfreezing changes what has
a gradient in the middle of a run.

Source: Li et al. (2020), "PyTorch Distributed", arXiv:2006.15704, for buckets and their order.

Read next: `shards.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 * 2**20  # the size that the paper found best, on 32 GPUs


class Replicas:
    """Sums the gradients of a model's copies; see `distributed.Layout`."""

    def __init__(self, model: nn.Module, reduce_dtype: torch.dtype) -> None:
        """Give every process the weights of the first one.

        Args:
            model: of the same shape on each process, on its final device.
            reduce_dtype: in which gradients are summed.
        """
        self.model, self.reduce_dtype = model, reduce_dtype
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0)
        self._hooked: set[nn.Parameter] = set()
        self._buckets: list[Bucket] = []
        self._bucket_of: dict[nn.Parameter, Bucket] = {}
        self._sent = 0

    def before_last(self) -> None:
        """Begin to send gradients: the next backward pass is the step's last."""
        trained = [p for p in reversed(list(self.model.parameters())) if p.requires_grad]
        for parameter in trained:
            if parameter not in self._hooked:
                parameter.register_post_accumulate_grad_hook(self._arrived)
                self._hooked.add(parameter)
        self._buckets = [Bucket(parameters) for parameters in cut(trained, BUCKET_BYTES)]
        self._bucket_of = {p: bucket for bucket in self._buckets for p in bucket.parameters}
        self._sent = 0

    def _arrived(self, parameter: Tensor) -> None:
        """Take note of a finished gradient, and send every bucket whose turn has come."""
        bucket = self._bucket_of.get(parameter)  # pyright: ignore[reportArgumentType]
        if bucket is None:
            return
        bucket.missing -= 1
        while self._sent < len(self._buckets) and self._buckets[self._sent].missing <= 0:
            self._buckets[self._sent].send(self.reduce_dtype)
            self._sent += 1

    def finish(self) -> None:
        """Send what is left, and return when `.grad` holds the sums; None where no process has a gradient."""
        for bucket in self._buckets[self._sent :]:
            bucket.send(self.reduce_dtype)
        for bucket in self._buckets:
            bucket.receive()
        self._buckets, self._bucket_of = [], {}

    def settle(self) -> None:
        """Do nothing: what the model computes with are its parameters themselves."""


class Bucket:
    """Some parameters whose gradients travel as one tensor, followed by a flag each: whether there is a gradient."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.missing = len(parameters)  # gradients that the backward pass has not finished
        self._flat: Tensor | None = None
        self._work: dist.Work | None = None

    def send(self, dtype: torch.dtype) -> None:
        """Start the sum over all processes."""
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flags = parts[0].new_tensor([float(p.grad is not None) for p in self.parameters])
        wide = parts[0].dtype == torch.float64  # the tests' truth; nobody trains in it
        flat = torch.cat([*(part.flatten() for part in parts), flags])
        self._flat = flat if wide else flat.to(dtype)
        self._work = dist.all_reduce(self._flat, async_op=True)

    def receive(self) -> None:
        """Wait for the sum and put it into `.grad`."""
        assert self._flat is not None and self._work is not None
        self._work.wait()
        *sums, flags = self._flat.split([*(p.numel() for p in self.parameters), len(self.parameters)])
        used = flags.tolist() if any(p.grad is None for p in self.parameters) else None  # reading it waits for a GPU
        for number, (parameter, total) in enumerate(zip(self.parameters, sums, strict=True)):
            if parameter.grad is not None:
                parameter.grad.copy_(total.view_as(parameter))
            elif used is not None and used[number]:
                parameter.grad = total.view_as(parameter).to(parameter.dtype, copy=True)


def cut(parameters: Sequence[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """Return the parameters in runs of one dtype and at most `size` bytes, one parameter at least.

    >>> [len(run) for run in cut([nn.Parameter(torch.zeros(3)) for _ in range(5)], size=24)]
    [2, 2, 1]
    """
    runs: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        needed = parameter.numel() * parameter.element_size()
        if not runs or needed > room or runs[-1][0].dtype != parameter.dtype:
            runs.append([])
            room = size
        runs[-1].append(parameter)
        room -= needed
    return runs
