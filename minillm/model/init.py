r"""Initial weights, in one table.

    what                                       drawn from N(mean, std)     why
    weights of linear layers, tables           N(0, init_std)              GPT-2 and BERT: 0.02
    `output` and `down` of a pre-norm model    N(0, init_std / sqrt(2 L))  2 L updates add up in the stream (GPT-2)
    token table beside sinusoidal positions    N(0, 1 / sqrt(C))           times sqrt(C): as large as the sinusoids
    gains of norms                             1
    biases                                     0

Read next: `count.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minillm.model.config import ModelConfig
from minillm.model.heads import LanguageModelHead
from minillm.model.layers import Embedding, Linear, Norm


class Undrawn(TorchFunctionMode):
    """Inside this context modules are built without initial weights: a checkpoint is about to overwrite them.

    Parameters are as the allocator gives them, which on a CPU is memory that is not there before it is written, and
    PyTorch's random state stays as it was. What is no parameter, such as rotary tables, is made.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the tensor as it is where it would be filled."""
        if func in FILLING:
            tensor: Tensor = args[0] if args else (kwargs or {})["tensor"]
            return tensor
        return func(*args, **(kwargs or {}))


FILLING = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.init.zeros_, nn.init.ones_)


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
