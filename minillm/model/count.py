"""How many parameters a model has, and what one token costs.

Read next: `../training/throughput.py`, which turns the cost into a share of the hardware.
"""

from __future__ import annotations

from torch import nn

from minillm.model.transformer import Transformer


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters; one that is used twice, such as a tied embedding, counts once."""
    return sum(p.numel() for p in model.parameters())


def flops_per_token(model: Transformer, length: int, *, head_share: float = 1.0) -> float:
    """Return the floating-point operations of one token in training, forward and backward.

        6 * N + 12 * sum over layers of H * D * min(T, window)

    N counts the weights that take part in a product: those of all linear layers, and the output weight, tied or not,
    for the share of the tokens that enter it. Embedding lookups multiply nothing; norms, biases and softmax are left
    out. The factor 6 is 2 (a product adds and multiplies) times 3 (forward, and backward for inputs and for weights);
    attention has two products. A causal mask does not halve it: that is the convention. What is recomputed in the
    backward pass counts once.

    Args:
        model: its adapters, if there are any, count as what they are.
        length: T, tokens that a query could see.
        head_share: share of the tokens that enter the head: 1 for causal LM, the masking rate for masked LM.

    Source: Chowdhery et al. (2022), arXiv:2204.02311, appendix B; it has no rules for embeddings, windows and heads.
    """
    config, head = model.config, model.lm_head
    body, top = _product_weights(model.blocks), 0
    if head is not None:
        top = _product_weights(head) + model.output_weight.numel()
    seen = sum(min(length, config.window_of(layer) or length) for layer in range(config.num_layers))
    return 6 * (body + head_share * top) + 12 * config.num_heads * config.head_dim * seen


def _product_weights(module: nn.Module) -> int:
    """Return the number of weights in the linear layers of a module."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
