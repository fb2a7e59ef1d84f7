"""One text as a model reads it: what explanations of an answer and attention maps begin with.

Read next: `explain.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minillm.checkpoint.hf.family import TASK_PURPOSES
from minillm.checkpoint.hf.folder import is_model_folder, open_folder
from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError
from minillm.finetune.config import TextConfig
from minillm.finetune.encoding import Sequences, TextEncoder, nothing_left
from minillm.finetune.predict import Finetuned, finetuned_from, load_finetuned, seed_folders
from minillm.finetune.table import text_table
from minillm.finetune.task_model import TaskModel
from minillm.loading import Loaded, checkpoint_name, loaded_from, loaded_run
from minillm.model.transformer import Transformer
from minillm.tokenizer.base import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One text as a model reads it.

    tokens: (1, T) int64. pieces: (T,) what each stands for, control symbols with their names.
    inputs: of the model beside the tokens, such as token_types, (1, T) each. cut: tokens that did not fit.
    """

    tokens: Tensor
    pieces: tuple[str, ...]
    cut: int = 0
    inputs: Mapping[str, Tensor] = field(default_factory=dict)


def load_any(folder: Path, which: str | int = "best", *, device: torch.device | str = "cpu") -> Loaded | Finetuned:
    """Return the model of a run, or of a Hugging Face folder, pretrained or with a task's head.

    See `minillm.load` and `load_finetuned`.

    Raises:
        InputError: no such run, folder or checkpoint, or a damaged one.
    """
    if is_model_folder(folder):
        source = open_folder(folder)
        if source.purpose in TASK_PURPOSES:
            return finetuned_from(source, device=device)
        return loaded_from(source, device=device)
    if seed_folders(folder):
        return load_finetuned(folder, which, device=device)
    run = RunFolder(folder)
    checkpoint = run.load(checkpoint_name(which), to_use=True)
    if "backbone" in checkpoint.model_config:
        return load_finetuned(folder, which, device=device)
    return loaded_run(run, checkpoint, device=device)


def only_model(loaded: Loaded | Finetuned) -> Transformer | TaskModel:
    """Return the model of a run.

    Raises:
        InputError: the run is several seeds of one.
    """
    if isinstance(loaded, Loaded):
        return loaded.model
    if len(loaded.models) > 1:
        raise InputError(f"explain looks at one model, and this run holds {len(loaded.models)} seeds; give RUN/seed-N")
    return loaded.models[0]


def reading_of(loaded: Loaded | Finetuned, text: str, pair: str | None = None) -> Reading:
    """Return a text as the model of a run reads it: framed as its task's texts, or as a document of pretraining.

    Args:
        pair: the second text, where the task is on pairs.
    Raises:
        InputError: an empty text, one that takes several windows or does not fit a pretrained model's context, a pair
            where single texts are read or the other way round, a run of several seeds or without a tokenizer.
    """
    pairs = not isinstance(loaded, Loaded) and loaded.task.facts.pairs
    if pairs != (pair is not None):
        raise InputError(f"the run reads {'pairs of texts: give' if pairs else 'single texts: leave out'} --pair")
    table = text_table([text], None if pair is None else [pair])
    device = next(only_model(loaded).parameters()).device
    if not isinstance(loaded, Loaded):
        sequences = loaded.task.encode(table, loaded.columns(table), loaded.encoder, labelled=False)
        return _read(sequences, loaded.tokenizer, device)
    tokenizer, config = loaded.require_tokenizer(), loaded.model.config
    sequences = TextEncoder(tokenizer, config, TextConfig(), pairs=False).sequences(table.texts("text"))
    if not len(sequences.tokens):
        raise nothing_left("--text", text)
    if lost := sequences.truncation.tokens:
        raise InputError(
            f"the text and its control symbols have {len(sequences.tokens) + lost} tokens, the model's context is "
            f"{config.context}; shorten it"
        )
    return _read(sequences, tokenizer, device)


def _read(sequences: Sequences, tokenizer: Tokenizer, device: torch.device) -> Reading:
    """Return the only sequence of a text, on a device.

    Raises:
        InputError: the text takes several windows.
    """
    if len(sequences) > 1:
        raise InputError(f"explain reads one window, and the text takes {len(sequences)}; give a part of it")
    tokens = torch.from_numpy(sequences.tokens.astype(np.int64))[None].to(device)
    inputs = {}
    if sequences.token_types is not None:
        inputs["token_types"] = torch.from_numpy(sequences.token_types.astype(np.int64))[None].to(device)
    pieces = tuple(map(tokenizer.piece, sequences.tokens.tolist()))
    return Reading(tokens=tokens, pieces=pieces, cut=sequences.truncation.tokens, inputs=inputs)
