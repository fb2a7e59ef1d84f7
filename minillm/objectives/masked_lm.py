r"""Masked language modelling: hide some tokens of a sequence and predict them from both sides.

    tokens     the  cat  sat  on  the  mat        targets, exactly max(1, round(rate * tokens)) a sequence, drawn anew
                     v         v                  for every batch
    seen       the [MASK] sat dog the  mat        each: mask_share as [MASK], random_share as a random token, else as is
    loss       - log p(cat) - log p(on)           the others do not enter the output layer

Whole-word masking draws words in place of tokens: all tokens of a word are hidden, so none of them gives the others
away. Span masking draws runs of words, so that a word's neighbours do not either. Both are taken in random order until
the number is reached; the last one is cut where it would pass it, so that the number is exact here too.

Read next: `masking.py`, which has the draws, then `../training/trainer.py`.
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
from minillm.objectives.masking import draw_lengths, neighbours, smallest, span_starts, word_starts
from minillm.objectives.protocol import LanguageModel, prediction_loss


class MaskedLM:
    """The objective of encoders: Devlin et al. (2019), arXiv:1810.04805.

    Masks are drawn anew for every batch, as in Liu et al. (2019), arXiv:1907.11692. Whether a target is seen as the
    mask, as a random token or as it is, is drawn token by token; for span masking span by span, as in Joshi et al.
    (2020), arXiv:1907.10529, section 3.1. The random tokens of a span are drawn apart.
    """

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
                Whole-word masking needs them; span masking without them draws spans of tokens.
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
        drawn = torch.rand(tokens.shape, generator=generator, dtype=torch.float64)
        source = self._sources(batch, candidates, drawn, generator)  # (B, T) the column whose key each token takes over
        chosen = smallest(drawn.gather(1, source), candidates, self._counts(candidates))
        fate = torch.rand(tokens.shape, generator=generator)
        if self.config.masking == "span":
            fate = fate.gather(1, source)
        strangers = self.ordinary[torch.randint(len(self.ordinary), tokens.shape, generator=generator)]
        masked, random = self.config.mask_share, self.config.mask_share + self.config.random_share
        seen = tokens.where(~(chosen & (fate < random)), strangers)
        seen = seen.masked_fill(chosen & (fate < masked), self.mask_token)
        targets = tokens.masked_fill(~chosen, IGNORED)
        return dataclasses.replace(batch, tokens=seen, targets=targets, num_targets=None)

    def step(self, model: LanguageModel, batch: Batch) -> Loss:
        """Return the summed loss in nats over the hidden tokens, and their number; only they enter the head."""
        return prediction_loss(model, model(batch.tokens, **batch.model_inputs()), batch, self.config)

    def _counts(self, candidates: Tensor) -> Tensor:
        """Return the number of targets of each row, (B,): the rate's share, one at least where there is a candidate."""
        available = candidates.sum(dim=1)
        wanted = available.double() * self.config.rate  # float32 would round 0.15 * 190 = 28.5 up and not to even
        return wanted.round().long().clamp(min=1).minimum(available)

    def _sources(self, batch: Batch, candidates: Tensor, drawn: Tensor, generator: torch.Generator) -> Tensor:
        """Return (B, T) int64: the column whose key each token takes over; `masking.py` says what that means."""
        kind, joined = self.config.masking, neighbours(candidates, batch.segments)  # (B, T-1)
        starts = torch.arange(batch.tokens.shape[1]).expand(batch.tokens.shape)
        if kind != "token" and self.begins_inside is not None and self.ends_inside is not None:
            inside = self.ends_inside[batch.tokens[:, :-1]] & self.begins_inside[batch.tokens[:, 1:]]  # (B, T-1)
            starts = word_starts(joined & inside)
        if kind == "span":
            return span_starts(drawn, starts, joined, draw_lengths(drawn.shape, generator))
        return starts
