"""An interpolated n-gram language model (Witten-Bell), trained in seconds: the figure that a Transformer has to beat.

Every n-gram of the training tokens gets a number, order by order, so that a context is one integer and not a tuple:

    gram_k[i]    = rank of (gram_(k-1)[i - 1], token[i]) among the distinct such pairs: the k-gram that ends at i
    context of i = gram_(k-1)[i - 1]: the k - 1 tokens before i

and one sort per order replaces all dictionaries. Held-out tokens are looked up in the sorted pairs.

Read next: `anchors.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Level:
    """The k-grams of one order k. G of them are distinct; a context is one of the K distinct (k-1)-grams.

    keys: (G,) int64, context * V + token, ascending.
    probability: (G,) float64, the interpolated probability of the token after the context.
    suffix: (G,) int64, the (k-1)-gram that is left without the first token; zeros where k is 1.
    backoff: (K,) float64, the weight of the shorter context: 1 where nothing ever followed the context.
    """

    keys: Integers
    probability: Floats
    suffix: Integers
    backoff: Floats


class NGram:
    """Interpolated Witten-Bell n-gram model over the integers 0 .. V - 1, orders 1 to `order`.

        P_k(w | h) = (c(h, w) + D(h) * P_(k-1)(w | h')) / (c(h) + D(h)),    P_0(w) = 1 / V

    where c(h, w) counts w after the context h of k - 1 tokens, c(h) is their sum, D(h) is the number of distinct
    tokens seen after h, and h' is h without its first token. A context never seen leaves P_k = P_(k-1).

    Args:
        tokens: (N,) training tokens, any integer dtype; all documents, one after the other.
        bounds: (documents + 1,) offsets of the documents in `tokens`, with the end; None: one document. No context
            reaches across a bound.
        vocab_size: V.
        order: longest n-gram; cut to the length of the longest document.
    Raises:
        ValueError: no tokens, a token outside 0 .. V - 1, or an order below 1.

    Cost: one sort of N integers per order; 10 MB of bytes at order 6 took 21 s and 1.0 GB on one CPU core.
    Source: Witten and Bell (1991), IEEE Transactions on Information Theory 37(4); in the interpolated form of Chen
    and Goodman (1998), Harvard TR-10-98, section 2.5.

    >>> model = NGram(np.array([0, 1, 0, 1, 0]), vocab_size=2, order=2)
    >>> model.losses(np.array([0, 1])).round(3)  # in nats; rows: uniform, unigram, bigram
    array([[0.693, 0.693],
           [0.56 , 0.847],
           [0.56 , 0.211]])
    """

    def __init__(
        self, tokens: NDArray[np.integer], bounds: Integers | None = None, *, vocab_size: int, order: int
    ) -> None:
        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")
        if not len(tokens):
            raise ValueError("an n-gram model needs at least one training token, got none")
        tokens = _checked(tokens, vocab_size)
        place = _place_in_document(len(tokens), bounds)
        self.vocab_size = vocab_size
        self.order = min(order, int(place.max()) + 1)
        self.levels: list[Level] = []
        shorter = np.zeros(len(tokens), np.int64)  # gram_(k-1) that ends at each token; the empty one to begin with
        for k in range(1, self.order + 1):
            inside = place >= k - 1  # the k-gram that ends here began in the same document
            context = _context(shorter, k)[inside]
            keys, number, count = np.unique(
                context * vocab_size + tokens[inside], return_inverse=True, return_counts=True
            )
            suffix = np.zeros(len(keys), np.int64)
            if k > 1:
                suffix[number] = shorter[inside]
            self.levels.append(self._level(keys, count, suffix))
            shorter = np.full(len(tokens), -1, np.int64)
            shorter[inside] = number

    def _level(self, keys: Integers, count: Integers, suffix: Integers) -> Level:
        """Return the level of the next order: the formula above, for every k-gram that was seen."""
        context = keys // self.vocab_size  # (G,)
        num_contexts = len(self.levels[-1].keys) if self.levels else 1
        total = np.bincount(context, weights=count, minlength=num_contexts)  # (K,) c(h)
        distinct = np.bincount(context, minlength=num_contexts)  # (K,) D(h)
        lower = self.levels[-1].probability[suffix] if self.levels else 1.0 / self.vocab_size  # P_(k-1)(w | h')
        seen = np.maximum(total + distinct, 1)  # a context that only ended documents has 0: nothing divides by it
        return Level(
            keys=keys,
            probability=(count + distinct[context] * lower) / seen[context],
            suffix=suffix,
            backoff=np.where(total > 0, distinct / seen, 1.0),
        )

    def losses(self, tokens: NDArray[np.integer], bounds: Integers | None = None) -> Floats:
        """Return -log P_k of each held-out token given those before it in its document, for every order k.

        Args:
            tokens: (N,) held-out tokens, any integer dtype.
            bounds: as for training.
        Returns:
            (order + 1, N) float64, in nats; row 0 is uniform, row 1 the unigram, row k the k-gram.
        Raises:
            ValueError: a token outside 0 .. V - 1.

        Cost: one binary search per token and order.
        """
        tokens = _checked(tokens, self.vocab_size)
        place = _place_in_document(len(tokens), bounds)
        probability = np.full((self.order + 1, len(tokens)), 1.0 / self.vocab_size)
        shorter = np.zeros(len(tokens), np.int64)
        for k, level in enumerate(self.levels, 1):
            context, gram = self._look_up(level, k, shorter, tokens, place)
            known = np.where(context >= 0, level.backoff[context], 1.0) * probability[k - 1]
            probability[k] = np.where(gram >= 0, level.probability[gram], known)  # index -1 is read, then not used
            shorter = gram
        return -np.log(probability)

    def best(self, tokens: NDArray[np.integer], bounds: Integers | None = None) -> Integers:
        """Return the likeliest token at each place given the tokens before it in its document, for every order.

        The best of the interpolated distribution is the best of the tokens seen after the context or, weighted by the
        backoff, the best of the shorter context: so one maximum per context and order is exact, and no distribution
        over all V is ever made.

        Args:
            tokens, bounds: as for `losses`; the token at a place plays no part in its own guess.
        Returns:
            (order, N) int64; row k - 1 is the guess of the k-gram model.
        """
        tokens = _checked(tokens, self.vocab_size)
        place = _place_in_document(len(tokens), bounds)
        guess = np.zeros((self.order, len(tokens)), np.int64)
        shorter = np.zeros(len(tokens), np.int64)
        value, token = np.array([1.0 / self.vocab_size]), np.array([0])  # of the empty context at order 0
        for k, level in enumerate(self.levels, 1):
            value, token = self._best_of(level, k, value, token)  # (K,) each
            context, shorter = self._look_up(level, k, shorter, tokens, place)
            guess[k - 1] = np.where(context >= 0, token[context], guess[k - 2])  # order 1 always has its context
        return guess

    def _best_of(self, level: Level, k: int, value: Floats, token: Integers) -> tuple[Floats, Integers]:
        """Return the highest probability after each context of a level, and its token, from those one order below."""
        parent = self.levels[k - 2].suffix if k > 1 else np.zeros(1, np.int64)  # (K,) context without its first token
        value, token = level.backoff * value[parent], token[parent]
        context = level.keys // self.vocab_size  # (G,) ascending
        # Within a context the highest comes first, and among equals the lowest token, since the sort is stable.
        first = np.lexsort((-level.probability, context))
        first = first[np.flatnonzero(np.diff(context, prepend=-1))]  # a context keeps its place under the sort
        at = context[first]
        better = level.probability[first] >= value[at]
        value[at[better]] = level.probability[first[better]]
        token[at[better]] = level.keys[first[better]] % self.vocab_size
        return value, token

    def _look_up(
        self, level: Level, k: int, shorter: Integers, tokens: Integers, place: Integers
    ) -> tuple[Integers, Integers]:
        """Return the context before and the k-gram that ends at each token, -1 where training never saw it."""
        context = np.where(place >= k - 1, _context(shorter, k), -1)
        key = context * self.vocab_size + tokens
        index = np.minimum(np.searchsorted(level.keys, key), len(level.keys) - 1)
        return context, np.where((level.keys[index] == key) & (context >= 0), index, -1)


def _checked(tokens: NDArray[np.integer], vocab_size: int) -> Integers:
    """Return tokens as int64, or raise ValueError for one outside 0 .. V - 1."""
    if len(tokens) and not (0 <= tokens.min() and tokens.max() < vocab_size):
        raise ValueError(f"tokens must be in 0 .. {vocab_size - 1}, got {tokens.min()} .. {tokens.max()}")
    return tokens.astype(np.int64)


def _place_in_document(length: int, bounds: Integers | None) -> Integers:
    """Return how many tokens of the same document stand before each token."""
    if bounds is None:
        return np.arange(length)
    return np.arange(length) - np.repeat(bounds[:-1], np.diff(bounds))


def _context(shorter: Integers, k: int) -> Integers:
    """Return the context number of each token at order k: the (k-1)-gram that ends one place before."""
    return np.zeros(len(shorter), np.int64) if k == 1 else np.concatenate(([-1], shorter[:-1]))
