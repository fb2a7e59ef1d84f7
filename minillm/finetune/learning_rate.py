r"""The peak learning rate that suits a model, where none is given.

AdamW moves each element of a weight by about the learning rate a step, however large the gradient is. So a step changes
a matrix W by rate / RMS(W) of itself, and that adds up over the rows of a matrix and over the layers. With L layers of
width C, and RMS over all elements of the matrices in the blocks,

    rate = 5.5 RMS(W) / (L C)        everything, or the top layers
    10 rate, at most 0.01            adapters that are matrices: lora, dora, adalora, houlsby, pfeiffer
    50 rate, at most 0.03            what learns vectors alone: prefix, ia3, bitfit, the head alone

| weights | RMS(W) | L | C | rate | what is known to do |
|---|---:|---:|---:|---:|---|
| BERT-base | 0.042 | 12 | 768 | 2.5e-5 | 2e-5 to 5e-5 (Devlin et al., 2019, arXiv:1810.04805) |
| MiniLM, 6 layers of 384 | 0.065 | 6 | 384 | 1.6e-4 | 5e-5; 3.3e-4 is too much: `benchmarks/CPU_LADDER.md` |
| the quickstart's encoder | 0.11 | 4 | 128 | 1.2e-3 | 3e-3 |
| a smaller one that Muon made | 0.19 | 2 | 128 | 4.1e-3 | 1e-3 to 1e-2: `benchmarks/FINETUNING.md` |
| the same drawn at random | 0.02 | 2 | 128 | 4.3e-4 | 3e-4 to 1e-3: the same |

It is a place to begin, and a search over three rates is better.

Read next: `config.py`, where the rate can be said.
"""

from __future__ import annotations

import dataclasses

from minillm.errors import InputError
from minillm.finetune.adapters.config import AdapterConfig
from minillm.finetune.config import FinetuneConfig
from minillm.finetune.scope_config import ScopeConfig
from minillm.finetune.task_model import TaskModel

SHARE = 5.5
MATRICES, VECTORS = (10.0, 1e-2), (50.0, 3e-2)  # times that of everything, at most
OF_VECTORS = ("prefix", "ia3", "bitfit")


def with_learning_rate(config: FinetuneConfig, model: TaskModel) -> FinetuneConfig:
    """Return the settings with a peak learning rate: their own, or the one that suits the model.

    Args:
        model: at its first step.
    Raises:
        InputError: none is given, and the optimiser is none that this rule is for, or the weights have no size.
    """
    optim = config.optim
    if optim.learning_rate > 0.0:
        return config
    if optim.name != "adamw":
        raise InputError(
            f"optim.learning_rate must be given with optim.name = {optim.name}; it is chosen for adamw alone"
        )
    rate = suitable_rate(model, config.scope, config.adapter)
    if not 0.0 < rate < float("inf"):
        raise InputError(
            "the model's weights are all 0 or not finite, and no learning rate suits them; use another model, or say "
            "optim.learning_rate"
        )
    return dataclasses.replace(config, optim=dataclasses.replace(optim, learning_rate=rate))


def suitable_rate(model: TaskModel, scope: ScopeConfig, adapter: AdapterConfig | None) -> float:
    """Return the rate of the table above, to two digits."""
    backbone = model.config.backbone
    rate = SHARE * matrix_rms(model) / (backbone.num_layers * backbone.width)
    if adapter is not None or scope.top_layers == 0:
        times, at_most = VECTORS if adapter is None or adapter.kind in OF_VECTORS else MATRICES
        rate = min(times * rate, at_most)
    return float(f"{rate:.1e}")


def matrix_rms(model: TaskModel) -> float:
    """Return the root of the mean square over all elements of the matrices in the blocks, adapters left out."""
    squares, count = 0.0, 0
    for name, weight in model.blocks.named_parameters():
        if weight.ndim == 2 and "adapters" not in name.split("."):
            squares, count = squares + float(weight.detach().double().square().sum()), count + weight.numel()
    return (squares / count) ** 0.5
