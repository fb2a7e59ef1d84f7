"""Which query sees which key: the one place where it is decided, for every backend.

Query i of T stands at key position i + S - T, so that the last query is level with the last key; distance(i, j) is the
key's position less the query's. Query i of row b sees key j when all of these hold that were asked for:

    (causal: distance <= 0,  window: -left <= distance <= right)  or  j < prefix[b]
    key_start[b] <= j < key_stop[b]
    segments[b, i] == segments[b, j]

With cu_seqlens the one row of the batch is sequences end to end; positions, distance and prefix then count inside the
sequence that a token belongs to, and a token past the last boundary neither sees nor is seen. key_start and key_stop
always count from the start of the row.

Read next: `reference.py`; `spans.py` for the same as the kernels read it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Window = tuple[int | None, int | None]


@dataclass(frozen=True)
class Masks:
    """The masks of one call of attention; meanings, and their order, as in the public function."""

    causal: bool = False
    window: Window = (None, None)
    key_start: Tensor | None = None
    key_stop: Tensor | None = None
    segments: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    prefix: Tensor | None = None

    def tensors(self) -> dict[str, Tensor | None]:
        """Return the masks that are tensors by name; None: not asked for."""
        names = ("key_start", "key_stop", "segments", "cu_seqlens_q", "cu_seqlens_k", "prefix")
        return {name: getattr(self, name) for name in names}

    def only_causal(self) -> bool:
        """Return whether causality is the only mask."""
        return self.causal and not self._by_window() and not self._by_row() and self.cu_seqlens_q is None

    def visible(self, T: int, S: int, device: torch.device) -> Tensor | None:
        """Return who sees whom, bool (1 or B, 1, 1 or T, S), as small as it can be; None: everybody sees everything.

        One query at the end of its keys, the case of decoding, needs no mask to be causal.
        """
        seen = self._by_distance(T, S, device)
        if seen is not None and self.prefix is not None:
            in_prefix = self._key_positions(S, device) < self.prefix[:, None]  # (B, S)
            seen = seen | in_prefix[:, None, None]
        in_range = self._by_key_range(S, device)
        if in_range is not None:
            seen = _both(seen, in_range[:, None, None])
        if self.segments is not None:
            same = self.segments[:, :, None] == self.segments[:, None, :]  # (B, T, S)
            seen = _both(seen, same[:, None])
        if self.cu_seqlens_q is not None:
            same = self._sequences_q(T, device)[:, None] == self._sequences_k(S, device)  # (T, S)
            seen = _both(seen, same[None, None])
        return seen

    def distance(self, T: int, S: int, device: torch.device) -> Tensor:
        """Return the position of each key less that of each query, int64 (T, S)."""
        return self._key_positions(S, device) - self._query_positions(T, S, device)[:, None]

    def _by_window(self) -> bool:
        return self.window != (None, None)

    def _by_row(self) -> bool:
        return any(mask is not None for mask in (self.key_start, self.key_stop, self.segments, self.prefix))

    def _by_distance(self, T: int, S: int, device: torch.device) -> Tensor | None:
        left, right = self.window
        if self.causal:
            right = 0
        if T == 1 and self.cu_seqlens_q is None:
            right = None  # the query is level with the last key: there is none to its right
        if left is None and right is None:
            return None
        distance = self.distance(T, S, device)[None, None]  # (1, 1, T, S)
        seen = None if left is None else distance >= -left
        return seen if right is None else _both(seen, distance <= right)

    def _by_key_range(self, S: int, device: torch.device) -> Tensor | None:
        j = torch.arange(S, device=device)
        seen = None if self.key_start is None else j >= self.key_start[:, None]  # (B, S)
        return seen if self.key_stop is None else _both(seen, j < self.key_stop[:, None])

    def _query_positions(self, T: int, S: int, device: torch.device) -> Tensor:
        i = torch.arange(T, device=device)
        if self.cu_seqlens_q is None:
            return i + (S - T)
        bounds_q, bounds_k = self.cu_seqlens_q, self.bounds_k()
        last = bounds_q.shape[0] - 2
        sequence = sequence_of(i, bounds_q).clamp(max=last)
        lengths_q, lengths_k = bounds_q.diff(), bounds_k.diff()
        return i - bounds_q[sequence] + (lengths_k - lengths_q)[sequence]

    def _key_positions(self, S: int, device: torch.device) -> Tensor:
        j = torch.arange(S, device=device)
        return j if self.cu_seqlens_q is None else j - self.bounds_k()[sequence_of(j, self.bounds_k())]

    def bounds_k(self) -> Tensor:
        bounds = self.cu_seqlens_q if self.cu_seqlens_k is None else self.cu_seqlens_k
        assert bounds is not None
        return bounds

    def _sequences_q(self, T: int, device: torch.device) -> Tensor:
        assert self.cu_seqlens_q is not None
        return sequence_of(torch.arange(T, device=device), self.cu_seqlens_q)

    def _sequences_k(self, S: int, device: torch.device) -> Tensor:
        sequences = sequence_of(torch.arange(S, device=device), self.bounds_k())
        past_the_last = self.bounds_k().shape[0] - 1
        return sequences.masked_fill(sequences == past_the_last, -1)  # queries there have the number itself: no match


def sequence_of(index: Tensor, bounds: Tensor) -> Tensor:
    """Return which sequence each index lies in: the last whose bound is not after it. An empty one has no index."""
    return torch.searchsorted(bounds.to(index.dtype).contiguous(), index, right=True) - 1  # of gaps it warns


def _both(seen: Tensor | None, also: Tensor) -> Tensor:
    return also if seen is None else seen & also
