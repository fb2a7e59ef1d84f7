r"""Initial weights, in one table.

    what                                       drawn from                  why
    weights of linear layers, tables           N(0, init_std)              GPT-2 and BERT: 0.02
    `output` and `down` of a pre-norm model    N(0, init_std / sqrt(2 L))  2 L updates add up in the stream (GPT-2)
    token table beside sinusoidal positions    N(0, 1 / sqrt(C))           times sqrt(C): as large as the sinusoids
    gains of norms                             1
    biases                                     0

Read next: `count.py`.
"""

from __future__ import annotations

import math

from torch import nn

from minillm.model.config import ModelConfig
from minillm.model.heads import LanguageModelHead
from minillm.model.layers import Embedding, Linear, Norm


def initialise(model: nn.Module, config: ModelConfig) -> None:
    """Fill all parameters by the table, in the order of `model.named_modules()`, from PyTorch's default generator."""
    for name, module in model.named_modules():
        kind = name.rpartition(".")[2]
        match module:
            case Linear():
                scaled = config.norm_position == "pre" and kind in ("output", "down")
                std = config.init_std / math.sqrt(2 * config.num_layers) if scaled else config.init_std
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            case Embedding():
                unit = kind == "tokens" and config.position == "sinusoidal"
                nn.init.normal_(module.weight, std=config.width**-0.5 if unit else config.init_std)
            case Norm():
                nn.init.ones_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            case LanguageModelHead():
                if module.weight is not None:
                    nn.init.normal_(module.weight, std=config.init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
