"""The spans that the kernels read: for each query the interval of its own keys, and for each key that of its queries.

With cu_seqlens the interval is the sequence, with segments it reaches from the document's first token to its last. A
kernel skips the tiles outside of it. A few small operations on the device, without a word to the host; a call that has
neither needs none.

Read next: `scores.py`, which says what a span is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm_kernels.attention.masks import Masks, sequence_of


def query_spans(masks: Masks, B: int, T: int, S: int, device: torch.device) -> Tensor | None:
    """Return first, stop, shift and origin of each query, int32 (B, 4, T); None where they follow from T and S."""
    if masks.cu_seqlens_q is None and masks.segments is None:
        return None
    i = torch.arange(T, device=device)
    first, stop, shift, origin = torch.zeros_like(i), torch.full_like(i, S), torch.full_like(i, S - T), None
    if masks.cu_seqlens_q is not None:
        bounds_q, bounds_k = masks.cu_seqlens_q.to(i.dtype), masks.bounds_k().to(i.dtype)
        first, stop, shift = _spans_in(i, bounds_q, bounds_k, S)
        origin = first
    first, stop, shift = (x.expand(B, T) for x in (first, stop, shift))
    origin = torch.zeros_like(first) if origin is None else origin.expand(B, T)
    if masks.segments is not None:
        first_in_document, stop_in_document = _documents(masks.segments)
        first, stop = first.maximum(first_in_document), stop.minimum(stop_in_document)
    return torch.stack((first, stop, shift, origin), 1).int()


def key_spans(masks: Masks, B: int, T: int, S: int, device: torch.device) -> Tensor | None:
    """Return first query, stop query and shift of each key, int32 (B, 3, S); None where they follow from T and S."""
    if masks.cu_seqlens_q is None and masks.segments is None:
        return None
    j = torch.arange(S, device=device)
    first, stop, shift = torch.zeros_like(j), torch.full_like(j, T), torch.full_like(j, S - T)
    if masks.cu_seqlens_q is not None:
        bounds_q, bounds_k = masks.cu_seqlens_q.to(j.dtype), masks.bounds_k().to(j.dtype)
        first, stop, shift = _spans_in(j, bounds_k, bounds_q, T)
        shift = -shift
    first, stop, shift = (x.expand(B, S) for x in (first, stop, shift))
    if masks.segments is not None:
        first_in_document, stop_in_document = _documents(masks.segments)
        first, stop = first.maximum(first_in_document), stop.minimum(stop_in_document)
    return torch.stack((first, stop, shift), 1).int()


def _spans_in(index: Tensor, own: Tensor, other: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return where the sequence of each index of one side stands on the other, and by how much the ends differ.

    An index past the last bound has nothing there. Bounds past the end of the other side count as its end: nothing
    outside a tensor is ever read, whatever the bounds say.
    """
    inside = index < own[-1]
    sequence = sequence_of(index, own).clamp(0, own.shape[0] - 2)
    first, stop = other[sequence].clamp(0, length), other[sequence + 1].clamp(0, length)
    shift = other[sequence + 1] - own[sequence + 1]
    return torch.where(inside, first, 0), torch.where(inside, stop, 0), shift


def _documents(segments: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the document of each token has its first token, and where its last one plus 1; int64 (B, T)."""
    T = segments.shape[1]
    numbers, index = segments.sort(dim=1, stable=True)  # a document is a run, in the order of its tokens
    place = torch.arange(T, device=segments.device).expand_as(index)
    differs = numbers[:, 1:] != numbers[:, :-1]
    edge = differs.new_ones(segments.shape[0], min(T, 1))
    begins, ends = torch.cat((edge, differs), 1), torch.cat((differs, edge), 1)
    run_begin = torch.where(begins, place, 0).cummax(1).values
    run_end = torch.where(ends, place, T).flip(1).cummin(1).values.flip(1)
    first = torch.empty_like(index).scatter_(1, index, index.gather(1, run_begin))
    stop = torch.empty_like(index).scatter_(1, index, index.gather(1, run_end) + 1)
    return first, stop
