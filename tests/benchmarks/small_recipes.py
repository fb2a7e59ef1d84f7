"""Recipes for tests: the architectures that there are, at sizes that a test takes a moment for."""

import dataclasses

import torch

from benchmarks.training.recipes import recipes
from benchmarks.training.registration import Contender, Recipe

CPU = torch.device("cpu")
ALL = recipes()
OURS = Contender(name="minillm", dtype="float32")
PEER = Contender(name="transformers", peer=True, dtype="float32")
SMALL = {"context": 24, "num_layers": 2, "width": 16, "num_heads": 2, "vocab_size": 37}


def small(name: str) -> Recipe:
    """Return a recipe with the architecture of one of those that there are, at sizes of a test, without dropout."""
    plain = {section: dict(values) for section, values in ALL[name].plain.items()}
    plain["model"] |= SMALL | {"dropout": 0.0, "attention_dropout": 0.0}
    if "num_kv_heads" in plain["model"]:
        plain["model"] |= {"num_kv_heads": 1, "mlp_width": 48}
    plain["train"] = {"batch_size": 4} if ALL[name].labels else {"batch_size": 4, "micro_batch_size": 2}
    return dataclasses.replace(ALL[name], kind="cpu", plain=plain, filed=plain, contenders=(OURS, PEER), ladder=())
