"""A task that a very small model learns in a few steps, as tables, and a run on them."""

import csv
import random

import pytest

from minillm.config import build, override
from minillm.finetune.config import FinetuneConfig

WORDS = {"good": ("good", "fine", "warm"), "bad": ("bad", "dull", "cold")}
OTHERS = ("the", "film", "day", "was", "and", "sea")


def rows_of(count, seed):
    """Return (text, label): each text has words of one side only."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = ("good", "bad")[number % 2]
        words = [*draw.choices(WORDS[label], k=2), *draw.choices(OTHERS, k=draw.randint(0, 2))]
        draw.shuffle(words)
        rows.append((" ".join(words), label))
    return rows


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """The paths of three tables, by split."""
    folder = tmp_path_factory.mktemp("tables")
    paths = {}
    for seed, (name, count) in enumerate((("train", 48), ("valid", 20), ("test", 14))):
        paths[name] = folder / f"{name}.csv"
        with paths[name].open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows_of(count, seed)])
    return paths


@pytest.fixture
def settings(tables, tiny_runs):
    """Return a function: kind of backbone, settings by dotted names (`train__max_steps=8`) -> a FinetuneConfig."""

    def make(kind="encoder", **given):
        table = {"init": str(tiny_runs[kind]), "data": {name: str(path) for name, path in tables.items()}}
        plain = {
            "train__batch_size": 8,
            "train__max_steps": 8,
            "train__eval_every": 4,
            "train__log_every": 1,
            "train__device": "cpu",
            "train__compute_dtype": "float32",
            "optim__learning_rate": 0.01,
        }
        for name, value in (plain | given).items():
            override(table, name.replace("__", "."), value)
        return build(FinetuneConfig, table, source="a test")

    return make
