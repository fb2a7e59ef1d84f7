"""From a model to a Hugging Face folder that transformers opens as its own class: `minillm export RUN --format hf`.

Which class that is the model's own settings say; a run that was imported is written as the family that it came from.
The tensors are the model's, bit for bit, in float32, or in the half precision in which they came if that loses nothing.

Read next: `exporting_tasks.py` and `exporting_adapter.py`; `checkpoint/hf/family.py` for what a family can say,
`checkpoint/hf/replacing.py` and `checkpoint/hf/llama_cpp.py` for what is looked at first and last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.checkpoint.hf.entries import write_entries
from minillm.checkpoint.hf.families import FAMILIES, family_of
from minillm.checkpoint.hf.family import Family, Purpose
from minillm.checkpoint.hf.folder import SHARD_BYTES, is_model_folder, read_model, write_folder
from minillm.checkpoint.hf.keys import MEANINGLESS, Keys
from minillm.checkpoint.hf.llama_cpp import llama_cpp_notes
from minillm.checkpoint.hf.origin import GENERATION, HALVES, Origin
from minillm.checkpoint.hf.replacing import check_free, model_obstacle
from minillm.checkpoint.hf.tokenizer_files import tokenizer_files
from minillm.checkpoint.native import tensors_of
from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError
from minillm.loading import checkpoint_name, loaded_run
from minillm.model.config import ModelConfig
from minillm.model.transformer import Transformer
from minillm.tokenizer.base import Tokenizer

# Of a folder that a run came from these are not kept: they are written anew, or were true of its files alone.
RENEWED = {"architectures", "dtype", "torch_dtype", "id2label", "label2id", "num_labels", "problem_type", "minillm"}
RENEWED |= {"_name_or_path", "transformers_version", "n_ctx"}
RENEWED |= {"rope_parameters", "rope_scaling", "rope_theta", "global_rope_theta", "local_rope_theta"}  # one number


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


@dataclass(frozen=True, kw_only=True)
class Content:
    """A Hugging Face folder before it is written: all that can be refused has been by then.

    settings: of config.json. tensors: by the file's names. others: further files by name. notes: as in `Exported`.
    """

    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    others: Mapping[str, bytes]
    notes: tuple[str, ...] = ()

    def write(self, out: Path, *, shard_bytes: int) -> Exported:
        """Write the folder, whole or not at all.

        Raises:
            InputError: it cannot be written.
        """
        write_folder(out, self.settings, self.tensors, self.others, shard_bytes=shard_bytes)
        return self.exported(out)

    def exported(self, out: Path) -> Exported:
        """Return what there is to say of the folder."""
        return Exported(
            folder=out,
            model_type=self.settings["model_type"],
            architecture=self.settings["architectures"][0],
            tensors=len(self.tensors),
            parameters=sum(tensor.numel() for tensor in self.tensors.values()),
            notes=self.notes,
        )


def export_run(
    run: Path,
    out: Path,
    *,
    which: str | int = "best",
    family: str | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write the model of a run, pretrained or fine-tuned, as a Hugging Face folder; arguments as in `export_model`.

    Args:
        which: "best", "latest" or a step that has a checkpoint.
    Raises:
        InputError: as in `export_model`, no such run, or one of several seeds; of a fine-tuned model a head that no
            family has (what differs is named), or an adapter that no weights can take in.
    """
    from minillm.finetune.predict import seed_folders

    if is_model_folder(run):
        raise InputError(
            f"{run} is a Hugging Face folder already; to write it in another way make a run of it first: "
            f"minillm import {RunFolder(run).quoted} --out RUN"
        )
    check_free(out, overwrite, model_obstacle)
    if seeds := seed_folders(run):
        raise InputError(f"{run} holds {len(seeds)} seeds of one run; export one of them, such as {seeds[0]}")
    folder = RunFolder(run)
    checkpoint = folder.load(checkpoint_name(which), to_use=True)
    if "backbone" in checkpoint.model_config:
        from minillm.exporting_tasks import merged_content

        content = merged_content(run, which, family=family)
    else:
        loaded = loaded_run(folder, checkpoint)
        content = model_content(loaded.model, tokenizer=loaded.tokenizer, origin=loaded.origin, family=family)
    return content.write(out, shard_bytes=shard_bytes)


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
    check_free(out, overwrite, model_obstacle)
    content = model_content(model, tokenizer=tokenizer, origin=origin, family=family)
    return content.write(out, shard_bytes=shard_bytes)


def model_content(
    model: Transformer, *, tokenizer: Tokenizer | None, origin: Origin | None = None, family: str | None = None
) -> Content:
    """Return what `export_model` writes; arguments and errors as there."""
    purpose: Purpose = "hidden_states"
    if model.config.head != "none":
        purpose = "causal_lm" if model.config.kind == "decoder" else "masked_lm"
    kind = chosen_family(model.config, family, origin)
    notes = []
    config = model.config
    if config.pooler and (purpose != "hidden_states" or kind.pooler is None):
        config = dataclasses.replace(config, pooler=False)
        notes.append(f"the pooler is left out: {kind.class_for(purpose)} has none")
    tensors = named_tensors(kind, config, purpose, tensors_of(model), origin)
    notes += llama_cpp_notes(kind.model_type, config, tokenizer)
    notes += dropout_notes(kind, config)
    settings = settings_for(kind, config, purpose, tokenizer=tokenizer, origin=origin) | dtype_of(tensors)
    others = {} if tokenizer is None else dict(tokenizer_files(tokenizer, model.config))
    if purpose == "causal_lm" and origin is not None and origin.generation is not None:
        others[GENERATION] = origin.generation
    return Content(settings=settings, tensors=tensors, others=others, notes=tuple(notes))


def chosen_family(model: ModelConfig, asked: str | None, origin: Origin | None) -> Family:
    """Return the family that a model is written as: the one asked for, else its origin's where it still is one."""
    if asked is None and origin is not None:
        came = FAMILIES[origin.settings["model_type"]]
        if not came.obstacles(model):
            return came
    return family_of(model, asked)


def named_tensors(
    family: Family, model: ModelConfig, purpose: Purpose, own: Mapping[str, Tensor], origin: Origin | None
) -> dict[str, Tensor]:
    """Return a model's tensors by transformers' names, with what its origin knew of them.

    Rows that no pass reads are the origin's. What came in half precision goes out in it where every number of all such
    tensors is one of it still; else all are in float32.
    """
    prefix = family.prefix_for(purpose)
    if origin is None or origin.settings["model_type"] != family.model_type:
        origin = Origin(settings={}, unread={})
    unread = {prefix + name: rows for name, rows in origin.unread.items()}
    tensors = write_entries(family.entries(model, purpose, prefix=prefix), own, unread)
    halves = {name: origin.halves.get(name.removeprefix(prefix)) for name in tensors}
    narrow = {name: tensors[name].to(HALVES[half]) for name, half in halves.items() if half is not None}
    if all(torch.equal(half.float(), tensors[name]) for name, half in narrow.items()):
        tensors |= narrow
    return tensors


def dtype_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the setting of the type in which transformers shall open a model: that of all tensors, else float32."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    return {"torch_dtype": str(dtype).removeprefix("torch.")}


def dropout_notes(family: Family, model: ModelConfig) -> list[str]:
    """Return a note where a family has no setting for the dropout outside attention."""
    if family.read(Keys(family.write(model), family.title)).dropout == model.dropout:
        return []
    return [f"the dropout of {model.dropout} is left out: {family.title} has none outside attention"]


def settings_for(
    family: Family, model: ModelConfig, purpose: Purpose, *, tokenizer: Tokenizer | None, origin: Origin | None
) -> dict[str, Any]:
    """Return config.json without its dtype: what the model is, in its origin's words where these still say it.

    Raises:
        InputError: a tokenizer whose padding the family cannot have.
    """
    ids: dict[str, int | None] = {}
    if tokenizer is not None:
        specials = tokenizer.specials
        ids = {f"{name}_token_id": getattr(specials, name) for name in ("pad", "bos", "eos", "cls", "sep")}
    elif origin is None:
        ids = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    own = _written(family, model)
    same, kept = _kept(family, model, origin)
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
        **same,
    }


def _written(family: Family, model: ModelConfig) -> dict[str, Any]:
    """Return a model's own settings; without an output weight nothing is tied."""
    settings = family.write(model)
    if model.head == "none":
        settings.pop("tie_word_embeddings", None)
    return settings


def _kept(family: Family, model: ModelConfig, origin: Origin | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what stays of an origin's settings: those that say what ours would, and those that we do not write.

    The latter are bookkeeping alone where the model is of another family or was changed: then they may not be true.
    """
    if origin is None:
        return {}, {}
    others, same = MEANINGLESS - RENEWED, {}
    if origin.settings["model_type"] == family.model_type:
        own = _written(family, model)
        came = read_model(family, Keys(origin.settings, "imported/config.json"))
        was = _written(family, dataclasses.replace(came, head=model.head, head_bias=model.head_bias))
        there = (own.keys() & origin.settings) - RENEWED
        same = {name: origin.settings[name] for name in there if was.get(name) == own[name]}
        if was == own:
            others = origin.settings.keys() - own.keys() - RENEWED
    return same, {name: value for name, value in origin.settings.items() if name in others}
