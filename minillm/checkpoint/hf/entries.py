"""A table of names: which tensor of a Hugging Face file is which of ours, and how it lies there. One table, both ways.

    as it is      theirs                   = ours
    stacked       theirs (3 C, C)          = ours q, k, v, each (C, C), end to end along the first axis
    transposed    theirs (in, out)         = ours (out, in) transposed, after stacking      GPT-2's Conv1D
    unread rows   theirs (R + N, C)        = R rows that no pass reads, then ours (N, C)    RoBERTa's positions

Reading makes views, no copies: what is mapped from a file stays there until it is copied into a model.

Read next: `keys.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm.errors import InputError
from minillm.model.config import ModelConfig


@dataclass(frozen=True)
class Entry:
    """One line of a table.

    theirs: name in the file. ours: name in the model; several: stacked. transposed, unread: as above.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    unread: int = 0

    def shape_there(self, own: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Return the shape of the file's tensor, given those of ours.

        >>> Entry("c_attn.weight", ("q", "k", "v"), transposed=True).shape_there([(4, 5)] * 3)
        (5, 12)
        """
        shape = (self.unread + sum(shape[0] for shape in own), *own[0][1:])
        return shape[::-1] if self.transposed else shape

    def read(self, theirs: Tensor) -> dict[str, Tensor]:
        """Return our tensors, as views of the file's."""
        rows = (theirs.T if self.transposed else theirs)[self.unread :]
        return dict(zip(self.ours, rows.chunk(len(self.ours)), strict=True))

    def write(self, own: Mapping[str, Tensor], unread: Tensor | None = None) -> Tensor:
        """Return the file's tensor.

        Args:
            own: our tensors by name, these among them.
            unread: rows to stand before ours; None: zeros.
        """
        parts = [own[name] for name in self.ours]
        if self.unread:
            shape = (self.unread, *parts[0].shape[1:])
            parts.insert(0, parts[0].new_zeros(shape) if unread is None else unread)
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        return (rows.T if self.transposed else rows).contiguous()


def affine(theirs: str, *ours: str, bias: bool = True, transposed: bool = False) -> Iterator[Entry]:
    """Yield the entries of a linear layer or a norm: its weight and, where it has one, its bias.

    >>> [entry.theirs for entry in affine("pooler.dense", "pooler.dense")]
    ['pooler.dense.weight', 'pooler.dense.bias']
    """
    yield Entry(f"{theirs}.weight", tuple(f"{name}.weight" for name in ours), transposed)
    if bias:
        yield Entry(f"{theirs}.bias", tuple(f"{name}.bias" for name in ours))


def output_weight(model: ModelConfig) -> Iterator[Entry]:
    """Yield the table of the output weight, where it is not the embedding."""
    if not model.tied_embeddings:
        yield Entry("lm_head.weight", ("lm_head.weight",))


def read_entries(
    entries: Iterable[Entry],
    theirs: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    *,
    source: Any,
    asker: str = "its config.json",
) -> dict[str, Tensor]:
    """Return a file's tensors by our names, as views, after checking that every name and shape agrees.

    Args:
        entries: the table of the model.
        theirs: the file's tensors.
        own: the model's tensors, of which only the shapes are asked.
        source: where the file's tensors came from, asker: what says which they must be; for the error's text.
    Raises:
        InputError: the first tensor that is missing, misshapen, of whole numbers or not in the table.
    """
    found: dict[str, Tensor] = {}
    known: set[str] = set()
    for entry in entries:
        known.add(entry.theirs)
        wanted = entry.shape_there([tuple(own[name].shape) for name in entry.ours])
        if entry.theirs not in theirs:
            raise InputError(f"{source} has no tensor {entry.theirs} {wanted}, which {asker} asks for")
        tensor = theirs[entry.theirs]
        if tuple(tensor.shape) != wanted:
            raise InputError(f"{source}: {asker} asks for {entry.theirs} {wanted}, the file has {tuple(tensor.shape)}")
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise InputError(
                f"{source}: {entry.theirs} is of {str(tensor.dtype).removeprefix('torch.')}, a quantised model; "
                "take the one in float32, float16 or bfloat16"
            )
        found |= entry.read(tensor)
    for name, tensor in theirs.items():
        if name not in known:
            raise InputError(f"{source} has a tensor {name} {tuple(tensor.shape)} that {asker} does not ask for")
    missing = sorted(own.keys() - found.keys())
    assert not missing, f"the table of names lacks {missing}"
    return found


def write_entries(
    entries: Iterable[Entry], own: Mapping[str, Tensor], unread: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return a model's tensors by their names in the file.

    Args:
        entries: the table of the model; what it does not name is left out.
        own: the model's tensors.
        unread: rows for the entries that have such, by the file's names; see `Entry.write`.
    """
    written: dict[str, Tensor] = {}
    seen: set[tuple[str, ...]] = set()
    for entry in entries:
        tensor = entry.write(own, unread.get(entry.theirs))
        written[entry.theirs] = tensor.clone() if entry.ours in seen else tensor  # safetensors refuses shared memory
        seen.add(entry.ours)
    return written


def unread_rows(entries: Iterable[Entry], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the rows that `read_entries` leaves out, by the file's names."""
    return {e.theirs: theirs[e.theirs][: e.unread].clone() for e in entries if e.unread}
