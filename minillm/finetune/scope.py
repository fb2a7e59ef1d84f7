r"""What trains of a model, and how fast: all of it, its top layers, the head alone; slower towards the bottom.

Every parameter has a height, for a backbone of L blocks:

    embeddings 0     block i: i + 1     final norm: L + 1     pooler, and all that is not of the backbone: L + 2

(a language model's own head stands at L + 2 too, but few tasks use it: it trains only where the embeddings do). Then

    rate of a parameter    peak * layer_decay^(L + 2 - height)
    it trains at step s    if height >= lowest(s)
    lowest(s)              0; top_layers = n: L + 1 - n; n = 0: L + 2
                           with unfreeze_every = e, and k = floor(s / e): not below L + 1 - k; k = 0: L + 2

so that gradual unfreezing begins with the head alone and goes one block further down every e steps, the embeddings
last. All of it is a function of the step, so a resumed run goes on as it was.

Source: rates as in the code of Clark et al. (2020), arXiv:2003.10555, where the last block is two below the head;
gradual unfreezing of Howard and Ruder (2018), arXiv:1801.06146; fresh top layers of Zhang et al. (2021),
arXiv:2006.05987.

Read next: `adapters/__init__.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import nn

from minillm.errors import InputError
from minillm.finetune.adapters.places import backbone_of
from minillm.finetune.scope_config import ScopeConfig
from minillm.model.init import initialise

if TYPE_CHECKING:
    from minillm.training.trainer import Trainer

BLOCK = re.compile(r"blocks\.(\d+)\.")


def heights(model: nn.Module) -> dict[str, int]:
    """Return the height of every parameter, by its name in the model.

    What an adapter has at a place has the place's height; the network of a prefix, which all blocks share, that of the
    lowest.
    """
    backbone = backbone_of(model)
    names = {parameter: name for name, parameter in backbone.named_parameters()}
    L = len(backbone.blocks)
    return {name: _height(names.get(parameter, ""), L) for name, parameter in model.named_parameters()}


def _height(name: str, num_layers: int) -> int:
    """Return the height of a parameter by its name in the backbone; "" for one that is not in it."""
    if name.startswith("embeddings."):
        return 0
    if found := BLOCK.match(name):
        return int(found[1]) + 1
    return num_layers + 1 if name.startswith("final_norm.") else num_layers + 2


def lowest(scope: ScopeConfig, num_layers: int, step: int | None = None) -> int:
    """Return the height from which parameters train.

    Args:
        scope: top_layers and unfreeze_every.
        num_layers: L.
        step: optimiser steps done; None: at the end of gradual unfreezing.

    >>> [lowest(ScopeConfig(unfreeze_every=10), 2, step) for step in (0, 9, 10, 20, 30, 40)]
    [4, 4, 2, 1, 0, 0]
    """
    head, n = num_layers + 2, scope.top_layers
    low = 0 if n is None else num_layers + 1 - n if n else head
    if step is None or not scope.unfreeze_every:
        return low
    stage = step // scope.unfreeze_every
    return max(low, num_layers + 1 - stage if stage else head)


def prepare(model: nn.Module, scope: ScopeConfig) -> None:
    """Draw the layers anew that are to be, and let those have gradients that train at some time of the run.

    Args:
        model: on whose parameters an optimiser is about to be made; nothing is attached to it. Fresh weights come from
            PyTorch's default generator, by the table of `minillm/model/init.py`; where there are any, the final norm
            and the pooler are fresh too, wherever it stands: a task's model has it in its head.
        scope: what trains.
    Raises:
        InputError: the scope asks for more layers than the model has, or for the head alone of a task without one.
    """
    backbone = backbone_of(model)
    L = len(backbone.blocks)
    for name in ("top_layers", "reinit_layers"):
        if (asked := getattr(scope, name) or 0) > L:
            raise InputError(f"scope.{name} is {asked}, and the model has {L} layers; take at most {L}")
    if scope.reinit_layers:
        poolers = backbone.pooler, getattr(getattr(model, "head", None), "pooler", None)
        for module in (*backbone.blocks[L - scope.reinit_layers :], backbone.final_norm, *poolers):
            if module is not None:
                initialise(module, backbone.config)
    set_trained(model, lowest(scope, L, step=0))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            "the head alone is to train, and this task has none but the model's own; leave out scope.unfreeze_every, "
            "and let scope.top_layers be 1 or more"
        )
    set_trained(model, lowest(scope, L))


def set_trained(model: nn.Module, lowest: int) -> None:
    """Let the parameters from a height on have gradients, and no other."""
    lm_head = backbone_of(model).lm_head
    own_head = set() if lm_head is None else set(lm_head.parameters())
    parameters = dict(model.named_parameters())
    for name, height in heights(model).items():
        reached = lowest == 0 if parameters[name] in own_head else height >= lowest
        parameters[name].requires_grad_(reached)


def unfreeze_gradually(model: nn.Module, scope: ScopeConfig, trainer: Trainer) -> None:
    """Let a trainer train, at each of its steps, what the scope says of that step.

    The optimiser knows all parameters from its beginning; one without a gradient it leaves alone, its state and its
    weight decay too.
    """
    L = len(backbone_of(model).blocks)
    if scope.unfreeze_every:
        trainer.before_step.append(lambda trainer: set_trained(model, lowest(scope, L, trainer.state.step)))


def rate_scales(model: nn.Module, scope: ScopeConfig) -> dict[str, float]:
    """Return the share of the peak learning rate of every parameter that has gradients, for `make_optimiser`.

    >>> from minillm.model.config import ModelConfig
    >>> from minillm.model.transformer import build_model
    >>> model = build_model(ModelConfig(vocab_size=9, context=4, num_layers=2, width=4, num_heads=1))
    >>> scales = rate_scales(model, ScopeConfig(layer_decay=0.5))
    >>> [scales[name] for name in ("embeddings.tokens.weight", "blocks.1.mlp.up.weight", "final_norm.bias")]
    [0.0625, 0.25, 0.5]
    """
    top = len(backbone_of(model).blocks) + 2
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: scope.layer_decay ** (top - height) for name, height in heights(model).items() if name in trained}
