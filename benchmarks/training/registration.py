"""What one training recipe tells the benchmark: a configuration, and the contenders that train it.

All contenders of a recipe take the steps of this project's own trainer on the very same batches of random tokens, with
the same optimiser; a peer's model and loss stand in the place of ours. The count of operations is of the task and not
of a contender, so all are held against the same ceiling.

Read next: `recipes.py`, then `build.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minillm.config import build, read_toml
from minillm.pretrain_config import PretrainConfig, preset_table

RECIPES = Path(__file__).parents[1] / "recipes"
Table = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to train a recipe's model.

    name: in the report.
    peer: transformers' model in the place of this project's.
    dtype: train.compute_dtype; a peer computes in it under autocast.
    compiled: through torch.compile.
    by_hand: ops that take the reference backend: the maths as it is written down, in single PyTorch ops.
    as_filed: the recipe's file as it stands, in place of the plain architecture that the peer has.
    """

    name: str
    peer: bool = False
    dtype: str = "auto"
    compiled: bool = False
    by_hand: tuple[str, ...] = ()
    as_filed: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One recipe under measurement.

    kind: of the device that it is for. peer: transformers' class of the same architecture.
    contenders: the first is the one that the others are compared with: what `minillm pretrain` does by default.
    ladder: contenders again, each with one thing more than the one before; the last two are contenders above.
    plain: settings of the peer's architecture. filed: the table of the recipe's file, from which come the sizes.
    labels: of a text, one of which is right: the recipe fine-tunes a classifier; 0: it pretrains.
    in_spare_time: measured in what the other recipes leave of the time.
    """

    name: str
    kind: str
    peer: str
    plain: Table
    filed: Table
    contenders: tuple[Contender, ...]
    ladder: tuple[Contender, ...] = ()
    labels: int = 0
    in_spare_time: bool = False

    def config(self, contender: Contender) -> PretrainConfig:
        """Return the settings of a contender's run."""
        table = {
            section: dict(values) for section, values in (self.filed if contender.as_filed else self.plain).items()
        }
        vocab_size = self.plain["model"]["vocab_size"]  # of a file it is the tokenizer's, and the text here has none
        table["model"] = {**table["model"], "vocab_size": vocab_size}
        chosen = {"compute_dtype": contender.dtype, "compile": contender.compiled}
        if self.kind == "cuda" and "attention" not in contender.by_hand and is_large_gpu():
            chosen["micro_batch_size"] = table["train"]["batch_size"]
        table["train"] = {**table["train"], **chosen}
        return build(PretrainConfig, table, source=f"benchmarks: {self.name}, {contender.name}")

    def contender(self, name: str) -> Contender:
        """Return a contender by its name."""
        return next(c for c in (*self.contenders, *self.ladder) if c.name == name)


def is_large_gpu() -> bool:
    """Return whether this is a GPU on which two compiled contenders may take a whole step at once beside each other.

    transformers' GPT-2 takes 44 GB for it, and this project's 22 (an H200, 2026-11-27).
    """
    return torch.cuda.is_available() and torch.cuda.get_device_properties().total_memory > 120e9


def filed(name: str) -> dict[str, Any]:
    """Return the table of a file in benchmarks/recipes."""
    return read_toml(RECIPES / f"{name}.toml")


def sizes(table: Table, plain: Table) -> dict[str, dict[str, Any]]:
    """Return the sizes of a recipe's file, what is learnt, and `plain` for all else.

    A step holds what the device holds at once: the optimiser's share of it is then the largest that it can be.
    """
    model, train = table["model"], table["train"]
    taken = {
        "model": {n: model[n] for n in ("kind", "context", "num_layers", "width", "num_heads")},
        "objective": {n: v for n, v in table["objective"].items() if n in ("name", "rate")},
        "train": {"batch_size": train.get("micro_batch_size") or train["batch_size"]},
        "data": {"document_mask": False},  # rows without padding or bounds, as the peers take them
        "optim": {"name": "adamw"},
    }
    return {section: {**values, **plain.get(section, {})} for section, values in taken.items()}


def preset(name: str, changes: Table) -> dict[str, dict[str, Any]]:
    """Return the table of a preset of `minillm pretrain --preset` with some settings changed."""
    table = preset_table(name)
    return {section: {**table.get(section, {}), **changes.get(section, {})} for section in {**table, **changes}}
