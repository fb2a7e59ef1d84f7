"""What stands in the place of a module so that adapters can act around it, and the way to such places.

    model.blocks[0].attention.q        Linear                                     before
    model.blocks[0].attention.q        Adapted(base=Linear, adapters={"a": LoRA}) after `attach`

A place is named by its path in the bare model, "blocks.0.attention.q", whatever else is attached. What one adapter puts
at one place is a `Part`. Parts at one place that are active together act in the order in which they were activated,
each around those before it:

    y = part_2(part_1(base))(x)

Read next: `lora.py`, the shortest part, then `attach.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from minillm.errors import InputError
from minillm.finetune.adapters.config import AdapterConfig
from minillm.model.layers import Embedding, Linear, Norm
from minillm.model.transformer import Transformer

TENSORS = ("weight", "bias")  # of a base, which merging rewrites


class Part(nn.Module):
    """What one adapter puts at one place.

    forward(inner, *inputs): what the place gives for its inputs; `inner` is the place without this part.
    config: of the adapter that it is part of.
    alone: whether nothing else may be active at its place.
    """

    forward: Callable[..., Any]
    alone: ClassVar[bool] = False

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config


class Mergeable(Part, ABC):
    """A part whose work the place's weight and bias can take in."""

    @abstractmethod
    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of a plain module that does what one of `weight` and `bias` does inside this part.

        Args:
            weight, bias: of the place, in the dtype to compute in; bias None: it has none.
        """


class Adapted(nn.Module):
    """Stands in the place of `base`; without an active adapter it is what `base` is.

    base: the module whose place it is.
    adapters: parts by the name of their adapter.
    active: names of the model's active adapters, in order; those that have a part here act.
    merged: whether the base has taken in the active ones, so that they must not act beside it.
    """

    adapters: Any  # nn.ModuleDict, which pyright knows to hold modules and not parts

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base: Any = base
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.merged = False

    def forward(self, *inputs: Any) -> Any:
        """Return what the base gives, inside the active parts."""
        run: Callable[..., Any] = self.base
        for part in self.acting():
            run = partial(part, run)
        return run(*inputs)

    def acting(self) -> list[Any]:
        """Return the parts that act beside the base, in order."""
        return [] if self.merged else [self.adapters[name] for name in self.active if name in self.adapters]

    def merge(self) -> None:
        """Write the active parts into the base's weight and bias; what these were is kept."""
        old = {name: tensor for name in TENSORS if (tensor := getattr(self.base, name, None)) is not None}
        new = self.effective(torch.float64)
        with torch.no_grad():
            for (name, tensor), value in zip(old.items(), new, strict=False):
                self.register_buffer(f"unmerged_{name}", tensor.detach().clone(), persistent=False)
                tensor.copy_(value)
        self.merged = True

    def effective(self, dtype: torch.dtype) -> list[Tensor]:
        """Return the base's weight, and its bias if there is one, as the acting parts make them, in `dtype`."""
        weight, bias = self.base.weight.to(dtype), getattr(self.base, "bias", None)
        bias = None if bias is None else bias.to(dtype)
        for part in self.acting():
            weight, bias = part.merged(weight, bias)
        return [weight] if bias is None else [weight, bias]

    def unmerge(self) -> None:
        """Give the base the very weight and bias that it had before `merge`."""
        with torch.no_grad():
            for name in TENSORS:
                if (tensor := getattr(self, f"unmerged_{name}", None)) is not None:
                    getattr(self.base, name).copy_(tensor)
                    delattr(self, f"unmerged_{name}")
        self.merged = False


class AdaptedNorm(Adapted):
    """Stands in the place of a norm. Its parts change gain and bias alone, so the addition stays in the same op."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the norm of x, (..., C), the one input."""
        (x,) = inputs
        return self.base.op(x, *self._gain_and_bias(), eps=self.base.eps)

    def add(self, x: Tensor, update: Tensor | None, dropout_p: float, seed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the norm of x + dropout(update) and that sum, as `Norm.add`."""
        if update is None:
            return self(x), x
        gain, bias = self._gain_and_bias()
        return self.base.op(update, gain, bias, eps=self.base.eps, residual=x, dropout_p=dropout_p, seed=seed)

    def _gain_and_bias(self) -> tuple[Tensor, Tensor | None]:
        weight, *bias = self.effective(torch.float32)
        return weight, bias[0] if bias else None


class AdaptedEmbedding(Adapted):
    """Stands in the place of a table; who reads its weight, such as a tied output, gets that of the base."""

    @property
    def weight(self) -> Tensor:
        """The base's table (V, C)."""
        return self.base.weight


def backbone_of(model: nn.Module) -> Transformer:
    """Return the Transformer in a model: its `backbone`, or the model itself.

    Raises:
        ValueError: it is neither.
    """
    backbone = getattr(model, "backbone", model)
    if not isinstance(backbone, Transformer):
        raise ValueError(f"adapters go onto a Transformer or a model with one as its backbone, got {type(model)}")
    return backbone


def places(model: nn.Module) -> dict[str, Adapted]:
    """Return all places in a model at which something is attached, by their paths in the bare backbone."""
    return {bare(path): module for path, module in backbone_of(model).named_modules() if isinstance(module, Adapted)}


def parts_of(model: nn.Module, name: str) -> dict[str, Any]:
    """Return the parts of an attached adapter by the paths of their places; none where there is none of that name."""
    return {path: place.adapters[name] for path, place in places(model).items() if name in place.adapters}


def bare(path: str) -> str:
    """Return a path without the steps that adapters put into it.

    >>> bare("blocks.0.mlp.base.up.base.weight")
    'blocks.0.mlp.up.weight'
    """
    return ".".join(word for word in path.split(".") if word != "base")


def modules_of(backbone: Transformer) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of the bare backbone with their paths, whatever is attached to it."""
    for path, module in backbone.named_modules():
        if not isinstance(module, Adapted) and ".adapters" not in path:
            yield bare(path), module


def target_places(
    backbone: Transformer,
    targets: tuple[str, ...],
    kinds: tuple[type[nn.Module], ...] = (Linear,),
    *,
    setting: str = "targets",
) -> dict[str, Any]:
    """Return the layers that are meant by names, by their paths, in the order of the model.

    Args:
        backbone: its pooler is left out: that trains as part of the head.
        targets: each the last part or parts of a path, "q" or "attention.q"; "all": every linear layer of the blocks.
        kinds: classes of layers that can be meant.
        setting: where the names were given, for the error's text.
    Raises:
        InputError: a name means no such layer; those that there are are listed.
    """
    there = {
        path: module
        for path, module in modules_of(backbone)
        if isinstance(module, kinds) and not path.startswith("pooler.")
    }
    for target in targets:
        if not any(_means(target, path, module) for path, module in there.items()):
            known = sorted({path.rpartition(".")[2] for path in there})
            raise InputError(
                f"adapter.{setting} has {target!r}, which the model has no layer of; it has {', '.join(known)}"
            )
    return {p: m for p, m in there.items() if any(_means(target, p, m) for target in targets)}


def _means(target: str, path: str, module: nn.Module) -> bool:
    """Return whether a target means the layer at a path."""
    if target == "all":
        return path.startswith("blocks.") and isinstance(module, Linear)
    return f".{path}".endswith(f".{target}")


def put_parts(backbone: Transformer, parts: Mapping[str, Part], name: str) -> None:
    """Put the parts of an adapter at their places, on the device of what stands there."""
    for path, part in parts.items():
        holder, word, module = _occupant(backbone, path)
        if not isinstance(module, Adapted):
            module = _wrapper(module)
            setattr(holder, word, module)
        module.adapters[name] = part.to(_device_of(module)).train(module.training)


def take_parts(backbone: Transformer, name: str) -> None:
    """Remove an adapter from all its places; a place that has no other is as it was."""
    for path, place in places(backbone).items():
        if name in place.adapters:
            del place.adapters[name]
        place.active = tuple(other for other in place.active if other != name)
        if not place.adapters:
            holder, word, _ = _occupant(backbone, path)
            setattr(holder, word, place.base)


def _occupant(backbone: Transformer, path: str) -> tuple[nn.Module, str, nn.Module]:
    """Return what stands at a place, the module that holds it and its name there."""
    *way, word = path.split(".")
    holder: nn.Module = backbone
    for step in way:
        holder = getattr(holder, step)
        holder = holder.base if isinstance(holder, Adapted) else holder
    return holder, word, getattr(holder, word)


def _device_of(module: nn.Module) -> torch.device | None:
    """Return the device of a module's first tensor; None where it has none."""
    return next((t.device for t in (*module.parameters(), *module.buffers())), None)


def _wrapper(module: nn.Module) -> Adapted:
    """Return the stand-in for a module of this kind, in the module's mode."""
    wrapper = {Norm: AdaptedNorm, Embedding: AdaptedEmbedding}
    made = next((cls for kind, cls in wrapper.items() if isinstance(module, kind)), Adapted)(module)
    return made.train(module.training)
