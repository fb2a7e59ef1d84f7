"""What is learnt: the section [objective].

Read next: `causal_lm.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from minillm.config import setting


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The objective and its few numbers. The masking settings are those of BERT, which causal LM does not look at.

    They say what is learnt from. What a model is judged by is the same for all of them: see `for_evaluation`.
    """

    name: Literal["causal_lm", "masked_lm"] = setting(
        "causal_lm", "causal_lm: predict the next token; masked_lm: predict hidden ones"
    )
    masking: Literal["token", "whole_word", "span"] = setting(
        "token", "masked_lm: hide single tokens, all tokens of a word, or spans of 1 to 10 words"
    )
    rate: float = setting(0.15, "masked_lm: share of a sequence's tokens that become targets, in (0, 1]")
    mask_share: float = setting(0.8, "masked_lm: share of the targets that the model sees as the mask symbol")
    random_share: float = setting(0.1, "masked_lm: share of the targets seen as a random token; the rest stay as is")
    label_smoothing: float = setting(0.0, "share of a target's probability spread over all tokens, in [0, 1)")
    z_loss: float = setting(0.0, "times logsumexp(logits)^2, added per target: keeps logits from drifting")

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"objective.rate must be above 0 and at most 1, got {self.rate}")
        shares = self.mask_share, self.random_share
        if not (all(share >= 0 for share in shares) and sum(shares) <= 1 + 1e-9):  # so written that nan is refused
            raise ValueError(
                f"objective.mask_share ({self.mask_share}) and random_share ({self.random_share}) must not be negative "
                "and sum to 1 at most; what is missing to 1 stays as it is"
            )
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"objective.label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if not 0.0 <= self.z_loss < float("inf"):
            raise ValueError(f"objective.z_loss must be 0 or above, got {self.z_loss}")

    def for_evaluation(self) -> ObjectiveConfig:
        """Return what a model is asked on held-out text, however it learnt: BERT's single tokens, 15 %, 80/10/10.

        Its own masking would make figures incomparable: hiding more of a text, or whole words of it, asks harder
        questions. Causal LM has nothing to choose.

        Source: MosaicBERT's recipe, which learns at 30 % and is evaluated at 15 % for the same reason; Portes et al.
        (2023), arXiv:2312.17482.
        """
        return dataclasses.replace(self, masking="token", rate=0.15, mask_share=0.8, random_share=0.1)
