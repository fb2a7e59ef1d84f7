"""transformers' models in the hands of this project's trainer: the same batches, loss and optimiser.

A peer is trained as its users do: weights in float32, `torch.autocast` for another compute dtype, SDPA, the mean loss
that the model itself returns for labels; with torch.compile all of that is one compiled call. The attention mask is
left out, as no row has padding, so that SDPA may take its fastest way.

Read next: `build.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from minillm.data.batch import IGNORED, Batch
from minillm.model.config import ModelConfig
from minillm.objectives.loss import Loss
from minillm.training.gradient import Objective


class NotInstalled(Exception):
    """A peer whose package is not there."""


class Peer(nn.Module):
    """A model of transformers with the few methods that the trainer asks for.

    config: of this project's model of the same shape.
    """

    def __init__(self, inner: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.inner, self.config = inner, config
        self.compute_dtype = torch.float32

    def compute_in(self, dtype: torch.dtype) -> None:
        """Compute activations in `dtype` from now on; parameters stay as they are."""
        self.compute_dtype = dtype

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Run the inner model, its loss included, through torch.compile."""
        self.inner.compile(*args, **kwargs)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss () for tokens (B, T) of targets, where they are predicted (B, T) or one a row (B,)."""
        # without shift_labels a decoder would take the targets for its inputs and move them by one
        shifted = {"shift_labels": targets} if self.config.kind == "decoder" else {}
        autocast = self.compute_dtype != torch.float32
        with torch.autocast(tokens.device.type, dtype=self.compute_dtype, enabled=autocast):
            return self.inner(input_ids=tokens, labels=targets, **shifted).loss


class PeerObjective:
    """The same preparation as for this project's model; the loss is the peer's own."""

    def __init__(self, ours: Objective) -> None:
        self.ours = ours

    def prepare(self, batch: Batch) -> Batch:
        """Return what this project's model is given too."""
        return self.ours.prepare(batch)

    def step(self, model: Peer, batch: Batch) -> Loss:
        """Return the summed loss in nats, and the number of targets."""
        assert batch.targets is not None
        count = (batch.targets != IGNORED).sum()
        return Loss(total=model(batch.tokens, batch.targets) * count, count=count)


def build_peer(name: str, config: ModelConfig, *, labels: int = 0) -> Peer:
    """Return transformers' model of the shape of `config`, at initial weights from PyTorch's default generator.

    Args:
        name: of its class in transformers.
        config: a shape that the class has.
        labels: of a classifier.
    Raises:
        NotInstalled: there is no transformers here.
    """
    if importlib.util.find_spec("transformers") is None:
        raise NotInstalled("transformers is not installed")
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()  # it warns of special tokens beyond a small vocabulary: unused here
    kind, settings = {"GPT2": ("GPT2Config", _gpt2), "Bert": ("BertConfig", _bert), "Llam": ("LlamaConfig", _llama)}[
        name[:4]
    ]
    chosen = settings(config) | ({"num_labels": labels} if labels else {})
    made = getattr(transformers, kind)(vocab_size=config.vocab_size, attn_implementation="sdpa", **chosen)
    return Peer(getattr(transformers, name)(made), config)


def _gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.hidden,
        "activation_function": {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "initializer_range": config.init_std,
        "use_cache": False,
    }


def _bert(config: ModelConfig) -> dict[str, Any]:
    return {
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
        "type_vocab_size": config.token_types,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "initializer_range": config.init_std,
    }


def _llama(config: ModelConfig) -> dict[str, Any]:
    return {
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rotary_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.init_std,
        "use_cache": False,
    }
