r"""Which tokens of a sequence masking hides: single ones, whole words, or spans of words.

Every column of a row draws a key, and a token takes over the key of one column. Tokens are hidden in the order of their
keys until the number is reached, so what differs between the kinds is only whose key a token has:

    token        its own
    whole_word   that of the column where its word begins
    span         the smallest among the columns where a span begins that covers it; `span_starts` draws the spans

    columns       0    1    2    3    4    5    6
    tokens       the  un  ##like ##ly  end  of  it      spans drawn: 2 words from columns 1 and 5, ...
    whole_word    0    1    1    1    4    5    6
    span          0    1    1    1    1    5    5       the span from 4 lost to the one from 1, that from 6 to 5

Tokens with the same key are hidden from left to right, so of the last word or span it is the end that is cut off where
the number would be passed.

Read next: `masked_lm.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

GEOMETRIC = 0.2  # p of the lengths of spans; SpanBERT's
LONGEST = 10  # words of a span; SpanBERT's


def neighbours(candidates: Tensor, segments: Tensor | None) -> Tensor:
    """Return (B, T-1) bool: whether columns t and t+1 may both be hidden and stand in the same document.

    Args:
        candidates: (B, T) bool, false at control symbols and padding.
        segments: (B, T), the document of each token; None: one document a row.
    """
    joined = candidates[:, :-1] & candidates[:, 1:]
    return joined if segments is None else joined & (segments[:, :-1] == segments[:, 1:])


def word_starts(joined: Tensor) -> Tensor:
    """Return (B, T) int64: the column at which the word of each token begins.

    Args:
        joined: (B, T-1) bool, whether columns t and t+1 belong to one word.

    >>> word_starts(torch.tensor([[False, True, True, False]]))
    tensor([[0, 1, 1, 1, 4]])
    """
    first = torch.cat([joined.new_ones(len(joined), 1), ~joined], dim=1)  # (B, T)
    columns = torch.arange(first.shape[1]).expand(first.shape)
    return columns.masked_fill(~first, 0).cummax(dim=1).values


def span_starts(keys: Tensor, words: Tensor, joined: Tensor, lengths: Tensor) -> Tensor:
    """Return (B, T) int64: the column that begins the span in which each token is hidden.

    From every word a span of `lengths` words begins. Among those that cover a token it is the one with the smallest key
    that hides it: the spans are uncovered in the order of their keys. A span ends early where its document does, or
    before a control symbol.

    Args:
        keys: (B, T) float, the order in which spans are uncovered; that of a word stands where it begins.
        words: (B, T) int64, the column at which the word of each token begins; the column itself: spans of tokens.
        joined: (B, T-1) bool, whether a span may go on from column t to t+1; see `neighbours`.
        lengths: (B, T) int64 in [1, LONGEST]: words of the span from word n of the row, counted from 0.

    Cost: LONGEST passes over (B, T) numbers.
    Source: Joshi et al. (2020), arXiv:1907.10529, section 3.1. There a start inside a span that is hidden already is
    drawn again; here it may lengthen that span, so that all rows are drawn at once.

    >>> columns = torch.arange(5)[None]
    >>> keys, anywhere = torch.tensor([[0.5, 0.1, 0.3, 0.7, 0.9]]), torch.ones(1, 4, dtype=torch.bool)
    >>> span_starts(keys, columns, anywhere, torch.tensor([[3, 2, 2, 1, 1]]))
    tensor([[0, 1, 1, 2, 4]])
    """
    number = (words == torch.arange(words.shape[1])).cumsum(dim=1) - 1  # (B, T) of each token's word in its row
    begin = torch.zeros_like(words).scatter_(1, number, words)  # (B, T) column of word n; 0 behind the last word
    stretch = torch.cat([joined.new_zeros(len(joined), 1), ~joined], dim=1).cumsum(dim=1).gather(1, begin)
    own = keys.gather(1, begin)
    key, start = own.clone(), begin.clone()  # by word, of the best span so far: the one that begins with it
    for d in range(1, LONGEST):
        covers = (lengths[:, :-d] > d) & (stretch[:, :-d] == stretch[:, d:])
        better = covers & (own[:, :-d] < key[:, d:])
        key[:, d:] = own[:, :-d].where(better, key[:, d:])
        start[:, d:] = begin[:, :-d].where(better, start[:, d:])
    return start.gather(1, number)


def draw_lengths(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return lengths of spans in words, int64 of `shape`.

        P(l) = p (1 - p)^(l - 1) / (1 - (1 - p)^L),     l = 1 .. L,     p = 0.2, L = 10: 3.8 words in the mean

    Lengths above L are drawn again and not counted as L, which is what gives SpanBERT's mean of 3.8.

    Source: Joshi et al. (2020), arXiv:1907.10529, section 3.1.
    """
    shares = GEOMETRIC * (1 - GEOMETRIC) ** torch.arange(LONGEST, dtype=torch.float64)
    upper = (shares / shares.sum()).cumsum(dim=0)[:-1]  # (L-1,) P(length <= 1 .. L-1)
    return 1 + torch.searchsorted(upper, torch.rand(shape, generator=generator, dtype=torch.float64), right=True)


def smallest(keys: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    """Return (B, T) bool: in each row the `counts` candidates with the smallest keys, the left one first among equals.

    >>> keys, candidates = torch.tensor([[0.3, 0.1, 0.1, 0.9]]), torch.tensor([[True, True, True, False]])
    >>> smallest(keys, candidates, torch.tensor([2]))
    tensor([[False,  True,  True, False]])
    """
    order = keys.masked_fill(~candidates, torch.inf).argsort(dim=1, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(keys.shape[1]).expand_as(order).contiguous())
    return (ranks < counts[:, None]) & candidates
