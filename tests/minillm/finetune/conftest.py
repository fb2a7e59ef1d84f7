"""The smallest fine-tuning: a stand-in for a fine-tuned model with its trainer; and tables, for whole runs on them."""

import csv
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killed
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.checkpoint.run_folder import RunFolder
from minillm.config import build, override
from minillm.data.batch import Batch
from minillm.finetune import report, run
from minillm.finetune.config import FinetuneConfig
from minillm.model.config import ModelConfig
from minillm.model.layers import Linear
from minillm.model.transformer import build_model
from minillm.objectives.loss import Loss
from minillm.training.config import OptimConfig, TrainConfig
from minillm.training.trainer import Trainer

MODELS: dict[str, dict[str, Any]] = {
    "encoder-pre": {"kind": "encoder", "norm_position": "pre", "embedding_norm": True},
    "encoder-post": {"kind": "encoder", "norm_position": "post", "embedding_norm": True, "pooler": True},
    "decoder-pre": {"kind": "decoder", "norm_position": "pre"},
    "decoder-post": {"kind": "decoder", "norm_position": "post"},
    "llama": {"kind": "decoder", "position": "rotary", "activation": "swiglu", "num_kv_heads": 2, "qk_norm": True},
}
SHAPE: dict[str, Any] = {"vocab_size": 19, "context": 12, "num_layers": 2, "width": 16, "num_heads": 4}
CLASSES = 3
WORDS = {"good": ("good", "fine", "warm"), "bad": ("bad", "dull", "cold")}
OTHERS = ("the", "film", "day", "was", "and", "sea")


class StandIn(nn.Module):
    """What fine-tuning makes of a pretrained model: the model, and a head beside it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_model(config)
        self.head = Linear(config.width, CLASSES)

    def compute_in(self, dtype: torch.dtype) -> None:
        self.backbone.compute_in(dtype)

    def forward(self, tokens: Tensor, **inputs: Any) -> Tensor:
        hidden = self.backbone(tokens, **inputs)  # (B, T, C)
        pooler = self.backbone.pooler
        return self.head(hidden.mean(dim=1) if pooler is None else pooler(hidden[:, 0]))


class Classify:
    """Tell the class of a row."""

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def step(self, model: nn.Module, batch: Batch) -> Loss:
        assert batch.targets is not None
        logits = model(batch.tokens, **batch.model_inputs())
        total = F.cross_entropy(logits, batch.targets[:, 0], reduction="sum")
        return Loss(total=total, count=torch.tensor(len(logits)))


class Rows:
    """Rows whose class is their first token's remainder; some are without any target, when `empty` holds their step."""

    def __init__(self, empty: tuple[int, ...] = ()) -> None:
        self.empty = empty

    def batch(self, step: int) -> Batch:
        tokens = torch.randint(19, (4, 6), generator=torch.Generator().manual_seed(step))
        targets = torch.full_like(tokens[:, :1], -100) if step in self.empty else tokens[:, :1] % CLASSES
        return Batch(tokens=tokens, targets=targets, seed=100 * step)


@pytest.fixture
def stand_in() -> Callable[..., StandIn]:
    """Return a function: a name in MODELS, settings -> a model in evaluation mode, no weight of it 0 or 1."""

    def make(kind: str = "encoder-post", **settings: Any) -> StandIn:
        torch.manual_seed(0)
        model = StandIn(ModelConfig(**(SHAPE | MODELS[kind] | settings))).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        return model

    return make


@pytest.fixture
def classify() -> Classify:
    """An objective."""
    return Classify()


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Return a function: a model, its objective, settings -> a trainer in a folder of that name under `tmp_path`."""

    def make(
        model: StandIn,
        objective: Any = None,
        *,
        folder: str = "run",
        optim: OptimConfig | None = None,
        empty: tuple[int, ...] = (),
        rate_scales: dict[str, float] | None = None,
        **train: Any,
    ) -> Trainer:
        run = RunFolder(tmp_path / folder)
        run.create(overwrite=True)
        return Trainer(
            model,
            objective or Classify(),
            Rows(empty),
            train=TrainConfig(**({"eval_every": 0, "checkpoint_every": 0, "compute_dtype": "float32"} | train)),
            optim=optim or OptimConfig(learning_rate=0.02, warmup_steps=0),
            folder=run,
            evaluate=lambda model: {"loss": 1.0},
            device=torch.device("cpu"),
            compute_dtype=torch.float32,
            rate_scales=rate_scales,
        )

    return make


@pytest.fixture(params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each name in MODELS."""
    return request.param


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

    def make(kind: str = "encoder", **given: Any) -> FinetuneConfig:
        table: dict[str, Any] = {
            "init": str(tiny_runs[kind]),
            "data": {name: str(path) for name, path in tables.items()},
        }
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


@pytest.fixture
def undrawn(monkeypatch):
    """No PNGs: they take three times as long as all else of such a run."""
    monkeypatch.setattr(run, "draw_plots", lambda folder: [])
    monkeypatch.setattr(report, "_plots", lambda *_: {})


@pytest.fixture
def kill_at(monkeypatch):
    """Return a function: step -> runs die right after it, until it is called with None."""
    plain = run._trainer

    def arm(step):
        def make(*parts):
            trainer = plain(*parts)
            trainer.after_step.append(killed.kill_at(step))
            return trainer

        monkeypatch.setattr(run, "_trainer", make)

    return arm


@pytest.fixture
def terminate_in(monkeypatch):
    """Return a function: name of a folder -> SIGTERM comes in the first step of the run in it, until it is None."""
    plain = run._trainer

    def arm(name):
        def make(config, folder, *parts):
            trainer = plain(config, folder, *parts)
            if folder.path.name == name:
                trainer.after_step.append(lambda _: signal.raise_signal(signal.SIGTERM))
            return trainer

        monkeypatch.setattr(run, "_trainer", make)

    return arm
