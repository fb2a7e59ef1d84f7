"""The optimiser: AdamW, Muon or SGD, which parameters decay, and its state by parameter name.

The decay rule, nanoGPT's: parameters with two axes or more (weights of linear layers, embeddings) decay; those with
fewer (biases, norms' gains) do not. Muon takes the weights of linear layers; embeddings and the output weight, whose
rows are looked up one by one, stay with AdamW. Another optimiser needs only param groups with a "peak_lr" each, which
the trainer multiplies with the schedule's share, and state tensors per parameter. A parameter's peak may be a share of
the others' (layer-wise decay of the learning rate): every share has groups of its own.

Read next: `gradient.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from minillm.checkpoint.sharded import is_sharded, spread_like
from minillm.errors import InputError
from minillm.training.config import OptimConfig
from minillm.training.muon import Muon
from minillm.training.precision import choose_compute_dtype

FUSED_DEVICES = ("cpu", "cuda", "mps")  # where PyTorch steps all parameters in one kernel


def make_optimiser(model: nn.Module, config: OptimConfig, rate_scales: Mapping[str, float] | None = None) -> Optimizer:
    """Return the optimiser of a model's trainable parameters: groups with decay and without, Muon's matrices apart.

    Args:
        model: its parameters must be on their final device.
        config: name and constants; for sgd the decay is the L2 term of PyTorch's SGD, else it is decoupled.
        rate_scales: parameter name -> share of the configured peak learning rate that it gets, above 0; 1 for the
            parameters that are not in it.
    Raises:
        ValueError: if no parameter of the model is trainable, or a name or share in `rate_scales` is none.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    trainable = list(named.values())
    if not trainable:
        raise ValueError("the model has no trainable parameter; leave requires_grad on for at least one")
    scales = _scales(model, named, rate_scales or {})
    matrices = set(linear_weights(model)) if config.name == "muon" else set()
    rate = config.adamw_learning_rate or config.learning_rate
    groups = [
        {"params": params, "weight_decay": decay, "peak_lr": peak_lr * scale}
        for scale in sorted(set(scales.values()), reverse=True)
        for mine in [[p for p in trainable if scales[p] == scale]]
        for params, decay, peak_lr in (
            ([p for p in mine if p in matrices], config.weight_decay, config.learning_rate),
            ([p for p in mine if p.ndim >= 2 and p not in matrices], config.weight_decay, rate),
            ([p for p in mine if p.ndim < 2], 0.0, rate),
        )
        if params
    ]
    fused = all(p.device.type in FUSED_DEVICES for p in trainable)
    if config.name == "sgd":
        fused = fused and not is_sharded(trainable[0])  # PyTorch has no fused SGD of DTensors
        return SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=fused)
    options: dict[str, Any] = {"lr": rate, "betas": (config.beta1, config.beta2), "eps": config.eps, "fused": fused}
    if config.name == "adamw":
        return AdamW(groups, **options)
    for group in groups:
        if group["params"][0] in matrices:
            group |= {"matrices": True, "momentum": config.momentum}
    product_dtype = choose_compute_dtype("auto", trainable[0].device).dtype
    return Muon(groups, product_dtype=product_dtype, **options)


def _scales(
    model: nn.Module, named: Mapping[str, nn.Parameter], rate_scales: Mapping[str, float]
) -> dict[nn.Parameter, float]:
    """Return the share of the peak learning rate of every trainable parameter."""
    known = {name for name, _ in model.named_parameters()}
    for name, scale in rate_scales.items():
        if name not in known or not 0.0 < scale < float("inf"):
            raise ValueError(f"rate_scales takes names of parameters and shares above 0, got {name!r}: {scale}")
    return {parameter: rate_scales.get(name, 1.0) for name, parameter in named.items()}


def linear_weights(model: nn.Module) -> list[Tensor]:
    """Return the weights of all linear layers, in the order of the modules."""
    return [module.weight for module in model.modules() if isinstance(module, nn.Linear)]


def set_learning_rate(optimiser: Optimizer, share: float) -> None:
    """Set each group's learning rate to `share` of its own peak."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * share


def optimiser_tensors(optimiser: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimiser's state as "slot.parameter name" -> tensor, such as "exp_avg.blocks.0.attention.q.weight".

    A parameter's number in the optimiser changes with the order of groups; its name does not.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{slot}.{names[parameter]}": value
        for parameter, slots in optimiser.state.items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)  # SGD without momentum keeps a None
    }


def put_optimiser_tensors(
    optimiser: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], *, source: object
) -> None:
    """Give an optimiser the state that `optimiser_tensors` took from another one.

    Args:
        optimiser: a new one, of the same kind.
        model: the model that it steps.
        tensors: "slot.parameter name" -> tensor.
        source: where they came from, for the error's text.
    Raises:
        InputError: a name or shape that the model does not have; the optimiser is then unchanged.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    state: dict[nn.Parameter, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        slot, _, name = key.partition(".")
        parameter = parameters.get(name)
        if parameter is None or (slot != "step" and value.shape != parameter.shape):
            asked = "no such parameter" if parameter is None else str(tuple(parameter.shape))
            raise InputError(
                f"{source} is of another run: {key} {tuple(value.shape)} in the file, {asked} in the model; "
                f"resume with the configuration that it was trained with"
            )
        # fused kernels want the step count beside the parameter, the others want it on the CPU
        on_host = slot == "step" and not optimiser.defaults.get("fused")
        state.setdefault(parameter, {})[slot] = value.clone() if on_host else value.to(parameter.device, copy=True)
        if slot != "step":
            state[parameter][slot] = spread_like(state[parameter][slot], parameter)
    for parameter, slots in state.items():
        optimiser.state[parameter] = slots
