"""From a run folder to a model that can be used: `minillm.load`.

The file is not called load.py: importing a submodule of that name would hide the function `minillm.load` behind it.

Read next: `generate.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from minillm.checkpoint.native import put_tensors
from minillm.checkpoint.run_folder import Checkpoint, RunFolder
from minillm.config import build, read_toml
from minillm.errors import InputError
from minillm.model.config import ModelConfig
from minillm.model.transformer import Decoder, Encoder, build_model
from minillm.tokenizer.base import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from minillm.pretrain_config import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A pretrained model and what belongs to it.

    model: in evaluation mode, parameters in float32; `model(tokens)` gives hidden states, `model.logits` logits.
    tokenizer: None where the run folder has none; `require_tokenizer` raises instead.
    config: of the whole run; None where the folder has only checkpoints.
    folder: the run folder.
    step: optimiser steps that the checkpoint was trained for.
    """

    model: Encoder | Decoder
    tokenizer: Tokenizer | None
    config: PretrainConfig | None
    folder: Path
    step: int

    def require_tokenizer(self) -> Tokenizer:
        """Return the tokenizer.

        Raises:
            InputError: the run folder has none.
        """
        if self.tokenizer is None:
            raise InputError(
                f"{self.folder} has no tokenizer folder, and text needs one; copy it from where the run was trained"
            )
        return self.tokenizer


def load(folder: Path | str, which: str | int = "latest", *, device: torch.device | str = "cpu") -> Loaded:
    """Return the model of a run folder with its tokenizer and configuration.

    Args:
        folder: what `--out` named when the run was started.
        which: "latest", "best" (lowest validation loss) or a step that has a checkpoint, as a number or its digits.
        device: where the model goes.
    Raises:
        InputError: not a run folder, no such checkpoint, a damaged one, or one of another architecture (the first
            tensor that differs is named), or a tokenizer with more tokens than the model knows.

    Cost: reads `model.safetensors` once, 4 bytes per parameter; PyTorch's random state is left as it was.
    """
    run = RunFolder(folder)
    checkpoint = run.load(checkpoint_name(which), to_use=True)
    tokenizer = load_tokenizer(run.tokenizer_path) if run.tokenizer_path.exists() else None
    model = model_of(checkpoint)
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise InputError(
            f"{run.tokenizer_path} is of another run: it has {tokenizer.vocab_size} tokens, the model knows "
            f"{model.config.vocab_size}; copy it from where the run was trained"
        )
    return Loaded(
        model=model.to(device),
        tokenizer=tokenizer,
        config=config_of(run),
        folder=run.path,
        step=checkpoint.step,
    )


def model_of(checkpoint: Checkpoint) -> Encoder | Decoder:
    """Return the model of a checkpoint, on the CPU, in evaluation mode.

    Raises:
        InputError: the weights do not fit the checkpoint's own config.json.
    """
    path = checkpoint.folder / "config.json"
    if "backbone" in checkpoint.model_config:
        raise InputError(f"{checkpoint.folder} is of a fine-tuned model, which answers to minillm predict and explain")
    config = build(ModelConfig, checkpoint.model_config, source=str(path), prefix="model.")
    if config.vocab_size < 1:
        raise InputError(f"{path} is damaged: model.vocab_size is {config.vocab_size}; use another checkpoint")
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then overwritten: no one shall notice
        model = build_model(config)
    put_tensors(model, checkpoint.model_tensors(), source=checkpoint.folder / "model.safetensors")
    return model.eval()


def config_of(run: RunFolder) -> PretrainConfig | None:
    """Return the configuration that a run was started with, or None where the folder has none.

    Raises:
        InputError: config.toml is damaged or names a key that is not known.
    """
    if not run.config_path.exists():
        return None
    from minillm.pretrain_config import PretrainConfig

    return build(PretrainConfig, read_toml(run.config_path), source=str(run.config_path))


def checkpoint_name(which: str | int) -> Literal["latest", "best"] | int:
    """Return a word of the command line as `RunFolder.load` takes it."""
    if isinstance(which, int) or which == "latest" or which == "best":
        return which
    if which.isdecimal():
        return int(which)
    raise InputError(f"a checkpoint is latest, best or a step such as 500, got {which!r}")
