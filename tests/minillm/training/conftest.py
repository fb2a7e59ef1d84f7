"""The smallest model, objective and loader that have all that the trainer asks for, and a limit on file sizes."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minillm.checkpoint.run_folder import RunFolder
from minillm.config import setting
from minillm.data.batch import Batch
from minillm.objectives.loss import Loss
from minillm.training.config import OptimConfig, TrainConfig
from minillm.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Of a tiny model."""

    vocab_size: int = setting(11, "words")
    width: int = setting(6, "channels")
    dropout: float = setting(0.25, "share of hidden numbers set to zero in training")


class TinyModel(nn.Module):
    """Embedding, norm, one layer and a tied output; dropout from the batch's seed."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.width)
        self.register_buffer("scale", torch.ones(()))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        self.compute_dtype = torch.float32

    def compute_in(self, dtype: torch.dtype) -> None:
        self.compute_dtype = dtype

    def forward(self, tokens: Tensor, *, seed: Tensor | None = None, **_: Any) -> Tensor:
        x = self.norm(self.embedding(tokens)).to(self.compute_dtype if self.compute_dtype != torch.float32 else None)
        if self.training and self.config.dropout and seed is not None:
            chance = torch.rand(x.shape, generator=torch.Generator().manual_seed(int(seed)))
            x = x * (chance >= self.config.dropout)
        x = torch.relu(nn.functional.linear(x, self.up.weight.to(x.dtype), self.up.bias.to(x.dtype)))
        return x @ self.embedding.weight.to(x.dtype).T


class TinyObjective:
    """Guess a share of the tokens from themselves; a penalty on the weights when there is a `penalty`."""

    def __init__(self, *, penalty: float = 0.0, rate: float = 0.5) -> None:
        self.penalty, self.rate = penalty, rate

    def prepare(self, batch: Batch) -> Batch:
        generator = torch.Generator().manual_seed(batch.seed or 0)
        chosen = torch.rand(batch.tokens.shape, generator=generator) < self.rate
        return replace(batch, targets=torch.where(chosen, batch.tokens, -100))

    def step(self, model: TinyModel, batch: Batch) -> Loss:
        logits = model(batch.tokens, **batch.model_inputs())
        wide = logits if logits.dtype == torch.float64 else logits.float()
        assert batch.targets is not None
        total = nn.functional.cross_entropy(wide.flatten(0, 1), batch.targets.flatten(), reduction="sum")
        penalty = self.penalty * sum((p**2).sum() for p in model.parameters()) if self.penalty else None
        assert penalty is None or isinstance(penalty, Tensor)
        return Loss(total=total, count=(batch.targets != -100).sum(), extra=penalty)


@dataclass
class TinyLoader:
    """Random tokens, a pure function of the step; remembers which steps were asked for."""

    rows: int = 4
    seed: int = 0
    asked: list[int] = field(default_factory=list)

    def batch(self, step: int) -> Batch:
        self.asked.append(step)
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        tokens = torch.randint(11, (self.rows, 7), generator=generator)
        lengths = torch.randint(1, 8, (self.rows,), generator=generator)
        return Batch(tokens=tokens, lengths=lengths, seed=10_000 * self.seed + 17 * step)


def evaluate(model: TinyModel) -> dict[str, float]:
    """Return the loss of a fixed batch; draws from the global generator, as a careless caller would."""
    assert not model.training and not torch.is_grad_enabled()
    torch.rand(3)
    objective = TinyObjective()
    loss = objective.step(model, objective.prepare(TinyLoader(rows=3, seed=9).batch(0)))
    return {"loss": float(loss.total / loss.count)}


MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """A function that makes a trainer of tiny parts: settings of [train] by name, whole parts by name too."""

    def make(name: str = "run", **given: Any) -> Trainer:
        parts = {
            "model": given.pop("model", None) or TinyModel(given.pop("config", TinyConfig())),
            "objective": given.pop("objective", None) or TinyObjective(),
            "loader": given.pop("loader", None) or TinyLoader(),
            "optim": given.pop("optim", None) or OptimConfig(learning_rate=0.02, warmup_steps=2),
            "evaluate": given.pop("evaluate", evaluate),
            "folder": RunFolder(tmp_path / name),
            "device": torch.device("cpu"),
            "compute_dtype": given.pop("compute_dtype", torch.float32),
        }
        extra = {key: given.pop(key) for key in ("flops_per_token", "progress", "resume_command") if key in given}
        train = {"batch_size": 4, "max_steps": 12, "eval_every": 4, "checkpoint_every": 4, "log_every": 1} | given
        if not parts["folder"].is_run():
            parts["folder"].create()
        return Trainer(**parts, train=TrainConfig(**train), **extra)

    return make


@pytest.fixture
def parts() -> Any:
    """The classes of the tiny parts, for tests that make their own."""

    class Parts:
        Config, Model, Objective, Loader = TinyConfig, TinyModel, TinyObjective, TinyLoader

    return Parts


@pytest.fixture
def file_size_limit() -> Callable[[int], Any]:
    """A context in which no file of this process grows past so many bytes: writing fails as on a full disk."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
