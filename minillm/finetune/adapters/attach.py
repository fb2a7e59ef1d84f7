"""Adapters onto a model and off it again, one or several, in the same few words for every kind.

    attach(model, LoRAConfig(rank=8), name="a")        the model is frozen; the adapter and the head learn
    attach(model, IA3Config(), name="b")               a second one; now it alone acts and learns
    set_active(model, "a", "b")                        both act, and both learn; "a" acts inside "b"
    set_active(model)                                  none: the model is the bare one
    merge(model); unmerge(model)                       into the weights, and the very bits back
    detach(model, "a")                                 off again; merged, the model keeps what it took in

A model is a Transformer, or a module with one as its `backbone` and with what its task needs beside it (a `head`).
That, and the backbone's pooler, always learns.

Which can be active together: any that act at different places. At one place LoRA, AdaLoRA, (IA)^3, bottlenecks,
prefixes and BitFit act one around the other; a DoRA, and Houlsby's norms, must be the only ones.

Read next: `files.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from minillm.checkpoint.native import put_by_name
from minillm.errors import InputError
from minillm.finetune.adapters import adalora, bitfit, bottleneck, dora, ia3, lora, prefix
from minillm.finetune.adapters.config import (
    AdaLoRAConfig,
    AdapterConfig,
    BitFitConfig,
    HoulsbyConfig,
    IA3Config,
    LoRAConfig,
    PfeifferConfig,
    PrefixConfig,
)
from minillm.finetune.adapters.dropout import forget_pass_seed
from minillm.finetune.adapters.places import Mergeable, Part, backbone_of, parts_of, places, put_parts, take_parts

NAME = re.compile(r"[A-Za-z0-9_-]+")


def attach(
    model: nn.Module,
    config: AdapterConfig,
    *,
    name: str = "adapter",
    tensors: Mapping[str, Tensor] | None = None,
    source: Path | str = "tensors",
) -> None:
    """Put a new adapter onto a model; it alone is active then, and learns.

    Args:
        model: its own weights stay what they are; in a Transformer with a `backbone` prefix or without.
        config: kind and settings.
        name: letters, digits, "_" and "-"; by it the adapter is found again.
        tensors: its weights, as `adapter_tensors` gives them; None: drawn from PyTorch's default generator.
        source: where the tensors came from, for the error's text.
    Raises:
        InputError: settings that do not fit the model (a target that it has not, no bias to learn), or tensors that do
            not fit the adapter; the model is then unchanged.
        ValueError: a name that is taken or does not do, or a model with merged adapters.
    """
    _check_not_merged(model, f"attach {name!r}")
    if not NAME.fullmatch(name) or name == "base" or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"an adapter's name is made of letters, digits, _ and -, got {name!r}; try 'adapter'")
    if name in attached(model):
        raise ValueError(f"an adapter named {name!r} is attached already; detach it or take another name")
    parts = _make_parts(model, config, name)
    if tensors is not None:
        try:
            put_by_name(_tensors_of(parts), tensors, source=source)
        except InputError:
            forget_pass_seed(backbone_of(model))  # the parts' dropout had asked for it
            raise
    put_parts(backbone_of(model), parts, name)
    set_active(model, name)


def detach(model: nn.Module, name: str | None = None) -> None:
    """Take an adapter off; without a name all of them, and what was merged stays in the weights.

    What learns afterwards is what is left of adapters and task; the model's own weights stay frozen until `scope.py`,
    or the caller, says otherwise.

    Raises:
        ValueError: no adapter of that name, or one of several that are merged.
    """
    if name is not None:
        _check_not_merged(model, f"detach {name!r} alone")
        check_attached(model, name)
    left = tuple(other for other in active(model) if name is not None and other != name)
    for each in attached(model) if name is None else (name,):
        take_parts(backbone_of(model), each)
    forget_pass_seed(backbone_of(model))
    if left:
        set_active(model, *left)


def attached(model: nn.Module) -> dict[str, AdapterConfig]:
    """Return the configurations of the attached adapters by their names."""
    return {name: part.config for place in places(model).values() for name, part in place.adapters.items()}


def active(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the active adapters, in the order in which they act."""
    return next((place.active for place in places(model).values()), ())


def set_active(model: nn.Module, *names: str) -> None:
    """Let the named adapters act, in this order, and no other; they and what the task has of its own learn.

    Raises:
        ValueError: a name that is not attached, two adapters that cannot act at one place, or merged adapters.
    """
    _check_not_merged(model, "choose other adapters")
    for name in names:
        check_attached(model, name)
    for path, place in places(model).items():
        here = [name for name in names if name in place.adapters]
        alone = [name for name in here if place.adapters[name].alone]
        if alone and len(here) > 1:
            other = next(name for name in here if name != alone[0])
            raise ValueError(f"adapter {alone[0]!r} must act alone at {path}, where {other!r} acts too; choose one")
    for place in places(model).values():
        place.active = names
    _freeze_all_but(model, names)


def merge(model: nn.Module) -> None:
    """Write the active adapters into the model's weights, computed in float64; what these were is kept for `unmerge`.

    Raises:
        InputError: an adapter that no weight can take in; the model is then unchanged.
        ValueError: no adapter is active, or some are merged already.

    Cost: a copy of each weight that changes.
    """
    _check_not_merged(model, "merge again")
    acting = {path: place for path, place in places(model).items() if place.acting()}
    if not acting:
        raise ValueError("no adapter is active, so there is nothing to merge; activate one with set_active")
    for path, place in acting.items():
        for name in (name for name in place.active if name in place.adapters):
            _check_merges(model, name, path, place.adapters[name])
    for place in acting.values():
        place.merge()


def unmerge(model: nn.Module) -> None:
    """Give the model the very weights that it had before `merge`; the adapters act beside them again.

    Raises:
        ValueError: none is merged.
    """
    merged = [place for place in places(model).values() if place.merged]
    if not merged:
        raise ValueError("no adapter is merged, so there is nothing to unmerge")
    for place in merged:
        place.unmerge()


def adapter_tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Return the weights of an adapter, by names such as "blocks.0.attention.q.adapter.A.weight", each once.

    Raises:
        ValueError: no adapter of that name.
    """
    check_attached(model, name)
    return _tensors_of(parts_of(model, name))


def put_adapter_tensors(model: nn.Module, name: str, tensors: Mapping[str, Tensor], *, source: Path | str) -> None:
    """Copy tensors into the weights of an adapter, in place, after checking that all names and shapes agree.

    Args:
        tensors: as `adapter_tensors` gives them.
        source: where they came from, for the error's text.
    Raises:
        InputError: the first tensor that differs, with both shapes; the adapter is then unchanged.
        ValueError: no adapter of that name.
    """
    put_by_name(adapter_tensors(model, name), tensors, source=source)


def task_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that a model has for its task, the backbone's pooler among them, by name."""
    backbone = backbone_of(model)
    own = set(backbone.parameters()) - (set() if backbone.pooler is None else set(backbone.pooler.parameters()))
    return {name: parameter for name, parameter in model.named_parameters() if parameter not in own}


def _make_parts(model: nn.Module, config: AdapterConfig, name: str) -> Mapping[str, Part]:
    """Return the parts of a new adapter by the paths of their places, without putting them there."""
    backbone = backbone_of(model)
    match config:
        case LoRAConfig():
            return (dora if config.dora else lora).parts(backbone, config, name)
        case AdaLoRAConfig():
            return adalora.parts(backbone, config, name)
        case HoulsbyConfig() | PfeifferConfig():
            return bottleneck.parts(backbone, config)
        case PrefixConfig():
            return prefix.parts(backbone, config)
        case IA3Config():
            return ia3.parts(backbone, config)
        case BitFitConfig():
            return bitfit.parts(backbone, config)


def _tensors_of(parts: Mapping[str, Part]) -> dict[str, Tensor]:
    """Return the parameters of parts by path, "adapter" and name; one that several share under its first path."""
    found: dict[nn.Parameter, str] = {}
    for path, part in parts.items():
        for name, parameter in part.named_parameters():
            found.setdefault(parameter, f"{path}.adapter.{name}")
    return {name: parameter for parameter, name in found.items()}


def _freeze_all_but(model: nn.Module, names: tuple[str, ...]) -> None:
    """Let the named adapters and the task's own parameters have gradients, and nothing else."""
    learning = set(task_tensors(model).values())
    for name in names:
        learning |= {p for part in parts_of(model, name).values() for p in part.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in learning)


def check_attached(model: nn.Module, name: str) -> None:
    """Raise ValueError unless there is an adapter of that name."""
    if name not in (there := attached(model)):
        raise ValueError(f"no adapter is attached under the name {name!r}; there is {', '.join(there) or 'none'}")


def _check_not_merged(model: nn.Module, what: str) -> None:
    if any(place.merged for place in places(model).values()):
        raise ValueError(f"cannot {what} while adapters are merged; unmerge them first")


def _check_merges(model: nn.Module, name: str, path: str, part: Part) -> None:
    config = backbone_of(model).config
    if not isinstance(part, Mergeable):
        raise InputError(
            f"adapter {name!r} ({part.config.kind}) cannot be merged: no weight at {path} does what it does; "
            f"keep it attached"
        )
    if path == "embeddings.tokens" and config.tied_embeddings and config.head != "none":
        raise InputError(
            f"adapter {name!r} cannot be merged: {path} is the output weight too (model.tied_embeddings), and the "
            f"adapter is for the input alone; keep it attached"
        )
