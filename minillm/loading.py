"""From a run folder, or one of Hugging Face's, to a model that can be used: `minillm.load`.

The file is not called load.py: importing a submodule of that name would hide the function `minillm.load` behind it.

Read next: `generate.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from minillm.checkpoint.hf.family import TASK_PURPOSES
from minillm.checkpoint.hf.folder import ModelFolder, is_model_folder, open_folder
from minillm.checkpoint.hf.origin import Origin
from minillm.checkpoint.native import put_tensors
from minillm.checkpoint.run_folder import Checkpoint, RunFolder
from minillm.config import build, read_toml
from minillm.errors import InputError
from minillm.model.config import ModelConfig
from minillm.model.init import Undrawn
from minillm.model.transformer import Decoder, Encoder, build_model
from minillm.tokenizer.base import FILE, Tokenizer, load_tokenizer
from minillm.tokenizer.hf import import_tokenizer
from minillm.training.failures import size_explained

if TYPE_CHECKING:
    from minillm.pretrain_config import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A pretrained model and what belongs to it.

    model: in evaluation mode, parameters in float32; `model(tokens)` gives hidden states, `model.logits` logits.
    tokenizer: None where the folder has none; `require_tokenizer` raises instead.
    config: of the whole run; None where the folder has only checkpoints, or is of Hugging Face's kind.
    folder: where it lies.
    step: optimiser steps that the checkpoint was trained for; 0 where the folder does not say.
    origin: what only its Hugging Face folder knew; None: it has none.
    notes: what of such a folder was left out or is not known, a line each.
    """

    model: Encoder | Decoder
    tokenizer: Tokenizer | None
    config: PretrainConfig | None
    folder: Path
    step: int
    origin: Origin | None = None
    notes: tuple[str, ...] = ()

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a text beside the tokenizer's eos, as an imported model's files name them.

        Raises:
            InputError: they are damaged.
        """
        return frozenset() if self.origin is None else self.origin.ends()

    def require_tokenizer(self) -> Tokenizer:
        """Return the tokenizer.

        Raises:
            InputError: the folder has none.
        """
        if self.tokenizer is None:
            raise no_tokenizer(self.folder)
        return self.tokenizer

    def save(self, folder: Path | str, *, format: Literal["run", "hf"] = "run") -> None:
        """Write the model, as it now is, with its tokenizer.

        Args:
            folder: must not be there, or be empty.
            format: run, which every command takes and `load` reads again; or hf, which transformers reads too.
        Raises:
            InputError: something is there, it cannot be written, or the model is none that transformers has.
        """
        from minillm.exporting import export_model
        from minillm.importing import save_run

        if format == "run":
            save_run(self, Path(folder))
        elif format == "hf":
            export_model(self.model, Path(folder), tokenizer=self.tokenizer, origin=self.origin)
        else:
            raise InputError(f"save takes the formats run and hf, got {format!r}")


def load(folder: Path | str, which: str | int = "latest", *, device: torch.device | str = "cpu") -> Loaded:
    """Return the model of a folder with its tokenizer and configuration.

    Args:
        folder: what `--out` named when the run was started, or a Hugging Face folder: config.json and safetensors.
        which: "latest", "best" (by train.best_by) or a step that has a checkpoint, as a number or its digits; a
            Hugging Face folder has one state only.
        device: where the model goes.
    Raises:
        InputError: neither kind of folder, a model that cannot be built here, no such checkpoint, a damaged one, or one
            of another architecture (the first tensor that differs is named), or a tokenizer with more tokens than the
            model knows.

    Cost: reads `model.safetensors` once, 4 bytes per parameter; PyTorch's random state is left as it was.
    """
    if is_model_folder(Path(folder)):
        return loaded_from(open_folder(Path(folder)), device=device)
    run = RunFolder(folder)
    return loaded_run(run, run.load(checkpoint_name(which), to_use=True), device=device)


def loaded_run(run: RunFolder, checkpoint: Checkpoint, *, device: torch.device | str = "cpu") -> Loaded:
    """Return the pretrained model of a run's checkpoint, with what belongs to it; errors as in `load`."""
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
        origin=Origin.read(run.path),
    )


def tokenizer_at(folder: Path) -> Tokenizer:
    """Return the tokenizer of a run, of a folder that holds nothing else, or of a Hugging Face folder.

    Raises:
        InputError: there is none, or it cannot be used.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; give a run, a folder with a tokenizer, or a Hugging Face folder")
    inside = RunFolder(folder).tokenizer_path
    if inside.is_dir():
        return load_tokenizer(inside)
    imported = None if (folder / FILE).is_file() else import_tokenizer(folder)
    return load_tokenizer(folder) if imported is None else imported


def loaded_from(source: ModelFolder, *, device: torch.device | str = "cpu") -> Loaded:
    """Return the model of a Hugging Face folder with its tokenizer.

    Raises:
        InputError: a model with a head for a task, or tensors that do not fit.

    Cost: the folder's tensors are copied once, straight from the mapped file into parameters.
    """
    if source.purpose in TASK_PURPOSES:
        raise InputError(
            f"{source.path} is a {source.family.class_for(source.purpose)}, which has a head for a task and answers to "
            "minillm predict"
        )
    with size_explained(), Undrawn():
        model = build_model(source.model)
    put_tensors(model, source.own_tensors(model.state_dict()), source=source.path)
    return Loaded(
        model=model.eval().to(device),
        tokenizer=tokenizer_of(source),
        config=None,
        folder=source.path,
        step=0,
        origin=Origin.of(source),
        notes=source.notes,
    )


def tokenizer_of(source: ModelFolder) -> Tokenizer | None:
    """Return the tokenizer of a Hugging Face folder, None where it has none.

    Raises:
        InputError: it cannot be used, or has more tokens than the model knows.
    """
    tokenizer = import_tokenizer(source.path)
    if tokenizer is not None and tokenizer.vocab_size > source.model.vocab_size:
        raise InputError(
            f"{source.path} does not go together: its tokenizer has {tokenizer.vocab_size} tokens, the model knows "
            f"{source.model.vocab_size}"
        )
    return tokenizer


def no_tokenizer(folder: Path) -> InputError:
    """Return the error for a run, or a Hugging Face folder, whose model shall read text and has no tokenizer."""
    if is_model_folder(folder):
        return InputError(f"{folder} has no tokenizer, and text needs one; bring its tokenizer.json")
    return InputError(f"{folder} has no tokenizer folder, and text needs one; copy it from where the run was trained")


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
    with size_explained(), Undrawn():
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
    if which.isdecimal() and len(which) <= 18:
        return int(which)
    raise InputError(f"a checkpoint is latest, best or a step such as 500, got {which[:40]!r}")
