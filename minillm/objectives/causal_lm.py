r"""Causal language modelling: predict every token from those before it.

    loss = - sum over t of log p(token_{t+1} | token_1 .. token_t)

Read next: `protocol.py` for the loss itself, then `masked_lm.py`.
"""

from __future__ import annotations

from minillm.data.batch import Batch
from minillm.objectives.config import ObjectiveConfig
from minillm.objectives.loss import Loss
from minillm.objectives.protocol import LanguageModel, prediction_loss


class CausalLM:
    """The objective of decoders. Targets are the loader's: it knows where a document ends and where a window does."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch as it is: its targets are the next tokens, and nothing is drawn.

        Raises:
            ValueError: the loader gave no targets.
        """
        if batch.targets is None:
            raise ValueError("causal LM needs batches with next-token targets; make the loader with shift=True")
        return batch

    def step(self, model: LanguageModel, batch: Batch) -> Loss:
        """Return the summed loss in nats over all targets, and their number."""
        return prediction_loss(model, model(batch.tokens, **batch.model_inputs()), batch, self.config)
