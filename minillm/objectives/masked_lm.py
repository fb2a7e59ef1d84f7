r"""Masked language modelling: hide some tokens of a sequence and predict them from both sides.

    tokens     the  cat  sat  on  the  mat        targets, exactly max(1, round(rate * tokens)) a sequence, drawn anew
                     v         v                  for every batch
    seen       the [MASK] sat dog the  mat        each: mask_share as [MASK], random_share as a random token, else as is
    loss       - log p(cat) - log p(on)           the others do not enter the output layer

Whole-word masking draws words in place of tokens: all tokens of a word are hidden, so none of them gives the others
away. Words are taken in random order until the number is reached; the last one is cut where it would pass it, so that
the number is exact here too.

Read next: `../training/trainer.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minillm.data.batch import IGNORED, Batch
from minillm.objectives.config import ObjectiveConfig
from minillm.objectives.loss import Loss
from minillm.objectives.protocol import LanguageModel, prediction_loss


class MaskedLM:
    """The objective of encoders. Devlin et al. (2019), arXiv:1810.04805; dynamic as in Liu et al. (2019)."""

    def __init__(
        self,
        config: ObjectiveConfig,
        *,
        vocab_size: int,
        mask_token: int,
        control_tokens: Sequence[int],
        word_classes: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
    ) -> None:
        """Take the facts about the vocabulary that masking needs.

        Args:
            vocab_size: number of tokens; random ones are drawn from those that are no control symbols.
            mask_token: the mask symbol's id.
            control_tokens: ids that are never hidden, such as cls, sep and pad, with the mask symbol among them.
            word_classes: (V,) bool each: the token begins, or ends, inside a word; see `Tokenizer.word_classes`.
                Needed for whole-word masking only.
        Raises:
            ValueError: whole-word masking without word classes, or a vocabulary of control symbols alone.
        """
        if config.masking == "whole_word" and word_classes is None:
            raise ValueError("whole-word masking needs word_classes; take those of the tokenizer")
        self.config, self.mask_token = config, mask_token
        self.maskable = torch.ones(vocab_size, dtype=torch.bool)
        self.maskable[list(control_tokens)] = False
        self.ordinary = self.maskable.nonzero()[:, 0]  # what a random token is drawn from
        if not len(self.ordinary):
            raise ValueError("all tokens are control symbols: nothing is left to mask")
        classes = (torch.from_numpy(np.array(c, dtype=bool)) for c in word_classes or ())
        self.begins_inside, self.ends_inside = classes if word_classes is not None else (None, None)

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with some tokens hidden and the originals as targets, drawn from a generator of its own.

        A row is a sequence, also where it holds several documents. A row of control symbols and padding has no targets.

        Raises:
            ValueError: the batch has no seed.
        """
        if batch.seed is None:
            raise ValueError("masking draws from batch.seed, and this batch has none; take it from a Loader")
        generator = torch.Generator().manual_seed(batch.seed)
        tokens = batch.tokens  # (B, T)
        candidates = self.maskable[tokens] & batch.real()
        keys = torch.rand(tokens.shape, generator=generator, dtype=torch.float64)
        if self.config.masking == "whole_word":
            keys = keys.gather(1, self._words(batch, candidates))  # tokens of one word share a key
        chosen = smallest(keys, candidates, self._counts(candidates))
        fate = torch.rand(tokens.shape, generator=generator)
        strangers = self.ordinary[torch.randint(len(self.ordinary), tokens.shape, generator=generator)]
        masked, random = self.config.mask_share, self.config.mask_share + self.config.random_share
        seen = tokens.where(~(chosen & (fate < random)), strangers)
        seen = seen.masked_fill(chosen & (fate < masked), self.mask_token)
        return dataclasses.replace(batch, tokens=seen, targets=tokens.masked_fill(~chosen, IGNORED))

    def step(self, model: LanguageModel, batch: Batch) -> Loss:
        """Return the summed loss in nats over the hidden tokens, and their number; only they enter the head."""
        assert batch.targets is not None
        hidden = model(batch.tokens, **batch.model_inputs())  # (B, T, C)
        chosen = batch.targets != IGNORED  # (B, T)
        return prediction_loss(model, hidden[chosen], batch.targets[chosen], self.config)

    def _counts(self, candidates: Tensor) -> Tensor:
        """Return the number of targets of each row, (B,): the rate's share, one at least where there is a candidate."""
        available = candidates.sum(dim=1)
        wanted = available.double() * self.config.rate  # float32 would round 0.15 * 190 = 28.5 up and not to even
        return wanted.round().long().clamp(min=1).minimum(available)

    def _words(self, batch: Batch, candidates: Tensor) -> Tensor:
        """Return (B, T) int64: the column at which the word of each token begins."""
        assert self.begins_inside is not None and self.ends_inside is not None
        tokens = batch.tokens
        joined = self.ends_inside[tokens[:, :-1]] & self.begins_inside[tokens[:, 1:]]  # (B, T-1)
        joined &= candidates[:, :-1] & candidates[:, 1:]
        if batch.segments is not None:
            joined &= batch.segments[:, :-1] == batch.segments[:, 1:]
        columns = torch.arange(tokens.shape[1]).expand(tokens.shape)
        first = torch.cat([torch.ones_like(tokens[:, :1], dtype=torch.bool), ~joined], dim=1)
        return columns.masked_fill(~first, 0).cummax(dim=1).values


def smallest(keys: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    """Return (B, T) bool: in each row the `counts` candidates with the smallest keys, the left one first among equals.

    >>> keys, candidates = torch.tensor([[0.3, 0.1, 0.1, 0.9]]), torch.tensor([[True, True, True, False]])
    >>> smallest(keys, candidates, torch.tensor([2]))
    tensor([[False,  True,  True, False]])
    """
    order = keys.masked_fill(~candidates, torch.inf).argsort(dim=1, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(keys.shape[1]).expand_as(order).contiguous())
    return (ranks < counts[:, None]) & candidates
