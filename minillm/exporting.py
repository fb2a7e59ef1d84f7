"""From a model to a Hugging Face folder that transformers opens as its own class: `minillm export RUN --format hf`.

Which class that is the model's own settings say; a run that was imported is written as the family that it came from.
The tensors are the model's, bit for bit, in float32.

Read next: `checkpoint/hf/family.py`, for what a family can say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.checkpoint import files
from minillm.checkpoint.hf.entries import write_entries
from minillm.checkpoint.hf.families import FAMILIES, family_of
from minillm.checkpoint.hf.family import Family, Purpose
from minillm.checkpoint.hf.folder import SHARD_BYTES, is_model_folder, write_folder
from minillm.checkpoint.hf.keys import MEANINGLESS
from minillm.checkpoint.hf.llama_cpp import llama_cpp_notes
from minillm.checkpoint.hf.origin import GENERATION, Origin
from minillm.checkpoint.hf.tokenizer_files import tokenizer_files
from minillm.checkpoint.native import tensors_of
from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError
from minillm.loading import checkpoint_name, load
from minillm.model.config import ModelConfig
from minillm.model.transformer import Transformer
from minillm.tokenizer.base import Tokenizer

# Of a folder that a run came from these are not kept: they are written anew, or were true of its files alone.
RENEWED = {"architectures", "dtype", "torch_dtype", "id2label", "label2id", "num_labels", "problem_type", "minillm"}
RENEWED |= {"_name_or_path", "transformers_version", "n_ctx"}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    folder: where. model_type, architecture: as its config.json says. tensors: how many. parameters: in all of them.
    notes: what the user should know, a line each.
    """

    folder: Path
    model_type: str
    architecture: str
    tensors: int
    parameters: int
    notes: tuple[str, ...] = ()


def export_run(
    run: Path,
    out: Path,
    *,
    which: str | int = "best",
    family: str | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write the model of a run as a Hugging Face folder; arguments as in `export_model`.

    Args:
        which: "best", "latest" or a step that has a checkpoint.
    Raises:
        InputError: as in `export_model`, or no such run.
    """
    from minillm.finetune.predict import seed_folders

    check_free(out, overwrite)
    if seeds := seed_folders(run):
        raise InputError(f"{run} holds {len(seeds)} seeds of one run; export one of them, such as {seeds[0]}")
    whole = RunFolder(run).load(checkpoint_name(which)).model_config
    if "backbone" in whole:
        from minillm.exporting_tasks import export_finetuned

        return export_finetuned(run, out, which=which, family=family, overwrite=overwrite, shard_bytes=shard_bytes)
    loaded = load(run, which)
    return export_model(
        loaded.model,
        out,
        tokenizer=loaded.tokenizer,
        origin=loaded.origin,
        family=family,
        overwrite=overwrite,
        shard_bytes=shard_bytes,
    )


def export_model(
    model: Transformer,
    out: Path,
    *,
    tokenizer: Tokenizer | None,
    origin: Origin | None = None,
    family: str | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write a pretrained model as a Hugging Face folder.

    Args:
        model: an encoder or decoder, with its head or without.
        out: the folder; it must not be there, or be empty.
        tokenizer: written beside the model; None: there is none, and the origin says the ids of control symbols.
        origin: of the folder that the model came from; None: it came from none.
        family: a `model_type`; None: the origin's, else the first one that fits.
        overwrite: replace a model folder that stands in `out`.
        shard_bytes: of one safetensors file.
    Raises:
        InputError: no family has such a model (what differs is named), or the folder cannot be written.
    """
    check_free(out, overwrite)
    purpose: Purpose = "hidden_states"
    if model.config.head != "none":
        purpose = "causal_lm" if model.config.kind == "decoder" else "masked_lm"
    kind = chosen_family(model.config, family, origin)
    notes = []
    config = model.config
    if config.pooler and (purpose != "hidden_states" or kind.pooler is None):
        config = dataclasses.replace(config, pooler=False)
        notes.append(f"the pooler is left out: {kind.class_for(purpose)} has none")
    tensors = write_entries(
        kind.entries(config, purpose, prefix=kind.prefix_for(purpose)),
        tensors_of(model),
        unread_of(kind, purpose, origin),
    )
    notes += llama_cpp_notes(kind.model_type, config, tokenizer)
    settings = settings_for(kind, config, purpose, tokenizer=tokenizer, origin=origin)
    others = {} if tokenizer is None else dict(tokenizer_files(tokenizer, model.config))
    if purpose == "causal_lm" and origin is not None and origin.generation is not None:
        others[GENERATION] = origin.generation
    write_folder(out, settings, tensors, others, shard_bytes=shard_bytes)
    return Exported(
        folder=out,
        model_type=kind.model_type,
        architecture=settings["architectures"][0],
        tensors=len(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        notes=tuple(notes),
    )


def check_free(out: Path, overwrite: bool) -> None:
    """Raise InputError where something stands that an export must not replace."""
    with files.explained(out):
        if out.is_dir() and not any(out.iterdir()):
            return
    if not out.exists() or (overwrite and is_model_folder(out)):
        return
    if is_model_folder(out):
        raise InputError(f"{out} already holds a model; choose another --out or add --overwrite")
    raise InputError(f"{out} is not empty and holds no exported model; choose another --out")


def chosen_family(model: ModelConfig, asked: str | None, origin: Origin | None) -> Family:
    """Return the family that a model is written as: the one asked for, else its origin's where it still is one."""
    if asked is None and origin is not None:
        came = FAMILIES[origin.settings["model_type"]]
        if not came.obstacles(model):
            return came
    return family_of(model, asked)


def unread_of(family: Family, purpose: Purpose, origin: Origin | None) -> Mapping[str, Any]:
    """Return the origin's unread rows by the names that are written."""
    if origin is None or origin.settings["model_type"] != family.model_type:
        return {}
    return {family.prefix_for(purpose) + name: rows for name, rows in origin.unread.items()}


def settings_for(
    family: Family, model: ModelConfig, purpose: Purpose, *, tokenizer: Tokenizer | None, origin: Origin | None
) -> dict[str, Any]:
    """Return config.json: what the model is, and of its origin what means nothing to the numbers.

    Raises:
        InputError: a tokenizer whose padding the family cannot have.
    """
    kept: Mapping[str, Any] = {}
    if origin is not None:
        kept = {name: value for name, value in origin.settings.items() if name in MEANINGLESS - RENEWED}
    ids: dict[str, int | None] = {}
    if tokenizer is not None:
        specials = tokenizer.specials
        ids = {f"{name}_token_id": getattr(specials, name) for name in ("pad", "bos", "eos", "cls", "sep")}
    elif origin is None:
        ids = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    own = family.write(model)
    if model.head == "none":  # no output weight, so that nothing is tied
        kept_tie = {} if origin is None else {"tie_word_embeddings": origin.settings.get("tie_word_embeddings")}
        own = {
            name: value
            for name, value in (own | kept_tie).items()
            if name != "tie_word_embeddings" or value is not None
        }
    if tokenizer is not None and own.get("pad_token_id", ids["pad_token_id"]) != ids["pad_token_id"]:
        raise InputError(
            f"{family.title} needs a tokenizer whose padding is {own['pad_token_id']}, and this one's is "
            f"{ids['pad_token_id']}; take another --family"
        )
    return {
        "architectures": [family.class_for(purpose)],
        "model_type": family.model_type,
        **ids,
        **{name: value for name, value in kept.items() if value is not None},  # such as several ids that end a text
        **own,
        "torch_dtype": "float32",
    }
