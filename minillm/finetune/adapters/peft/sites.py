r"""Which module of transformers a place of ours is, or is a part of.

    ours                            theirs (BERT)                                  theirs (GPT-2)
    blocks.0.attention.q            bert.encoder.layer.0.attention.self.query      transformer.h.0.attn.c_attn, part 0
    blocks.0.attention.v            bert.encoder.layer.0.attention.self.value      transformer.h.0.attn.c_attn, part 2

The tables of names that checkpoints go by say it. Where one module of theirs is several layers of ours, its weight is
theirs end to end (`parts`, n of them), and adapters of some of them become one of the whole:

    [B_q A_q; 0; B_v A_v] = [B_q 0; 0 0; 0 B_v] [A_q; A_v]      A stacked (m r, in), B block-diagonal (n out, m r)

m is how many of the n parts have an adapter. The product is scaled by alpha / r, so alpha grows with the rank, m-fold.
Back again, row block i of B belongs to part i, which keeps the columns of its own block and the rows of A that these
meet; an adapter that was trained on the whole has no blocks, and then every part gets all of A. Both are exact.

Read next: `write.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from minillm.checkpoint.hf.family import BACKBONE, Family, Purpose
from minillm.errors import InputError
from minillm.model.config import ModelConfig

WEIGHT = ".weight"
INSIDE = (
    "blocks.",
    "embeddings.",
    "lm_head.transform.",
)  # where adapters can be: not at an output weight, nor a pooler


@dataclass(frozen=True)
class Site:
    """One module of transformers that can have an adapter.

    module: its path in their model. parts: our places that it consists of, in order.
    transposed: it is GPT-2's Conv1D, whose weight is (in, out). unread: rows of a table before ours.
    """

    module: str
    parts: tuple[str, ...]
    transposed: bool
    unread: int


def sites_of(family: Family, model: ModelConfig, purpose: Purpose) -> dict[str, Site]:
    """Return the modules that can have an adapter by their paths, in the order of the table; norms are among them."""
    found = {}
    for entry in family.entries(model, purpose, prefix=family.prefix_for(purpose)):
        parts = tuple(name.removeprefix(BACKBONE).removesuffix(WEIGHT) for name in entry.ours)
        if entry.theirs.endswith(WEIGHT) and parts[0].startswith(INSIDE):
            module = entry.theirs.removesuffix(WEIGHT)
            found[module] = Site(module, parts, entry.transposed, entry.unread)
    return found


def sites_with(sites: Mapping[str, Site], places: Iterable[str]) -> list[Site]:
    """Return the sites that have one of our places as a part.

    Raises:
        InputError: a place is part of none.
    """
    wanted = set(places)
    found = [site for site in sites.values() if wanted & set(site.parts)]
    if unknown := sorted(wanted - {part for site in found for part in site.parts}):
        raise InputError(f"PEFT's format has no name for an adapter at {unknown[0]}; choose other adapter.targets")
    return found


def modules_there(family: Family, model: ModelConfig, purpose: Purpose) -> list[str]:
    """Return the paths of all their modules that have a weight, the heads' too: what a name could mean by mistake."""
    entries = family.entries(model, purpose, prefix=family.prefix_for(purpose))
    return [entry.theirs.removesuffix(WEIGHT) for entry in entries if entry.theirs.endswith(WEIGHT)]


def shortest_names(chosen: Iterable[str], there: Iterable[str]) -> list[str]:
    """Return the shortest ends of paths that mean these modules and no other, as both sides read their targets.

    >>> shortest_names(["h.0.attn.out", "h.1.attn.out"], ["h.0.attn.out", "h.1.attn.out", "h.0.mlp.out"])
    ['attn.out']
    """
    wanted, known = set(chosen), list(there)
    ends = set()
    for module in wanted:
        words = module.split(".")
        candidates = [".".join(words[-count:]) for count in range(1, len(words) + 1)]
        ends.add(next(end for end in candidates if all(m in wanted for m in known if f".{m}".endswith(f".{end}"))))
    return sorted(ends)
