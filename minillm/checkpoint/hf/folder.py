"""A Hugging Face model folder on the disk: read with every name checked, written whole or not at all.

    config.json  model.safetensors                                      or, in parts,
    config.json  model.safetensors.index.json  model-00001-of-00003.safetensors ...

Tensors are mapped, not read: their bytes come from the disk when they are copied into a model. A folder may be
anyone's: no pickle is opened, and an index names files of the folder alone. Links among these are followed, wherever
they lead: the hub's cache consists of them.

Read next: `origin.py`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minillm.checkpoint import files
from minillm.checkpoint.hf.entries import Entry, read_entries, unread_rows
from minillm.checkpoint.hf.families import FAMILIES
from minillm.checkpoint.hf.family import Family, Purpose
from minillm.checkpoint.hf.keys import Keys
from minillm.checkpoint.hf.labels import read_task, read_text
from minillm.checkpoint.native import write_tensors
from minillm.errors import InputError
from minillm.model.config import ModelConfig

CONFIG, WHOLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
OF_TRAINING = {"optimizer.pt", "scheduler.pt", "scaler.pt", "training_args.bin", "rng_state.pth"}  # no weights
SHARD_BYTES = 5 * 10**9  # as transformers does
MOST_POSITIONS = 2**21  # of rotary tables, which are made when the model is


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """What a folder says it holds, and its tensors.

    path: the folder. settings: its config.json. family, purpose: by its `model_type` and `architectures`.
    model: configuration of the model, of a task's model that of its backbone.
    tensors: by the file's names, mapped.
    prefix: what stands before the names of the body in the file.
    notes: what was left out or not known, a line each.
    """

    path: Path
    settings: Mapping[str, Any]
    family: Family
    purpose: Purpose
    model: ModelConfig
    tensors: Mapping[str, Tensor]
    prefix: str
    notes: tuple[str, ...]

    @property
    def keys(self) -> Keys:
        """The settings, to be asked by name."""
        return Keys(self.settings, self.path / CONFIG)

    def own_tensors(self, shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors by our names, mapped.

        Args:
            shapes: the tensors of the model that they go into.
        Raises:
            InputError: a tensor that is missing, misshapen or too many.
        """
        return read_entries(self._entries(), self.tensors, shapes, source=self.path)

    def unread(self) -> dict[str, Tensor]:
        """Return rows that no model of ours has, by the file's names without prefix; an export puts them back."""
        return {
            name.removeprefix(self.prefix): rows for name, rows in unread_rows(self._entries(), self.tensors).items()
        }

    def _entries(self) -> list[Entry]:
        return self.family.entries(self.model, self.purpose, prefix=self.prefix)

    def task(self) -> dict[str, Any]:
        """Return the table of what its head is for."""
        return read_task(self.keys, self.purpose)

    def text(self) -> dict[str, Any]:
        """Return the table of how its texts are read."""
        return read_text(self.keys)

    def head(self) -> dict[str, Any]:
        """Return the settings of the head: the table of a `HeadConfig`."""
        head, keys = self.family.task_heads[self.purpose], self.keys
        table: dict[str, Any] = {"layer": head.layer, "bias": head.bias}
        table["dropout"] = keys.share(self.family.dropout_key, self.model.dropout)
        if len(head.pooling) == 1:
            table["pooling"] = head.pooling[0]
        elif head.pooling:
            table["pooling"] = keys.choice("classifier_pooling", {word: word for word in head.pooling}, head.pooling[0])
        return table


def is_model_folder(path: Path) -> bool:
    """Return whether a folder looks like one of Hugging Face's rather than a run's."""
    return path.is_dir() and (path / CONFIG).is_file() and not (path / "config.toml").exists()


def open_folder(path: Path) -> ModelFolder:
    """Return what lies in a folder; of its tensors names and shapes are read, and both of two that must be equal.

    Raises:
        InputError: no such folder, a model of another kind or with a setting that cannot be built here, files that are
            missing or damaged, a pickle, or an index that leads elsewhere.
    """
    if not path.is_dir():
        raise InputError(f"no folder {path}; give one with {CONFIG} and {WHOLE}")
    if (path / "adapter_config.json").exists() and not (path / CONFIG).exists():
        raise InputError(f"{path} holds an adapter and no model; give the folder of the model that it belongs to")
    settings = read_table(path / CONFIG)
    keys = Keys(settings, path / CONFIG)
    family = _family(keys)
    purpose = _purpose(keys, family)
    for name in ("is_decoder", "is_encoder_decoder", "add_cross_attention"):
        keys.only(name, False)
    keys.absent("cross_attention_hidden_size")
    keys.absent("quantization_config")
    model = read_model(family, keys)
    keys.share(family.dropout_key, 0.0)
    tensors = _renamed(path, map_tensors(path))
    if model.num_layers > len(tensors):
        raise InputError(f"{path / CONFIG} asks for {model.num_layers} layers, and there are {len(tensors)} tensors")
    if model.position == "rotary" and model.context > MOST_POSITIONS:
        keys.refuse("max_position_embeddings", f"{MOST_POSITIONS:,} at most are")
    prefix = family.prefix_for(purpose) or family.prefix
    prefix = prefix if any(name.startswith(prefix) for name in tensors) else ""
    if purpose not in ("masked_lm", "causal_lm"):
        model = dataclasses.replace(model, head="none", head_bias=False, tied_embeddings=True)
    if family.pooler is not None and purpose in ("hidden_states", "masked_lm"):
        model = dataclasses.replace(model, pooler=f"{prefix}pooler.dense.weight" in tensors)
    table = family.entries(model, purpose, prefix=prefix)
    kept, notes = _without_extras(
        path, family, tensors, {e.theirs for e in table}, {e.ours[0]: e.theirs for e in table}
    )
    wide = sorted(name for name, tensor in kept.items() if tensor.dtype == torch.float64)
    if wide:
        notes.append(f"tensors in float64 are narrowed to float32: {', '.join(wide[:3])}{', ...' * (len(wide) > 3)}")
    if strangers := keys.strangers():
        notes.append(f"keys of {path / CONFIG} that {family.title} does not have, ignored: {', '.join(strangers)}")
    return ModelFolder(
        path=path,
        settings=settings,
        family=family,
        purpose=purpose,
        model=model,
        tensors=kept,
        prefix=prefix,
        notes=tuple(notes),
    )


def read_model(family: Family, keys: Keys) -> ModelConfig:
    """Return the configuration that a family's settings describe.

    Raises:
        InputError: a setting that cannot be built here, or settings that do not go together.
    """
    try:
        return family.read(keys)
    except InputError:
        raise
    except ValueError as error:  # what a ModelConfig says of settings that do not go together, and how to change ours
        fact, _, _ = str(error).partition("; ")
        raise InputError(f"{keys.source} does not go together: {fact}; fetch it again") from error


def _family(keys: Keys) -> Family:
    """Return the family that a folder names."""
    kind = keys.table.get("model_type")
    if kind is None and ("width" in keys.table or "backbone" in keys.table):
        raise InputError(f"{keys.source} is of a checkpoint inside a run; give the run's folder")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(f"{keys.source}: model_type {kind!r:.80} is not supported; known are {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def _purpose(keys: Keys, family: Family) -> Purpose:
    """Return what stands on the hidden states."""
    names = keys.words("architectures") or []
    if len(names) != 1 or names[0] not in family.classes:
        keys.refuse("architectures", f"it names one of {', '.join(family.classes)}")
    return family.classes[names[0]]


def _renamed(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with names of today: the first BERTs call a norm's weight and bias gamma and beta.

    Raises:
        InputError: a tensor is there under both names.
    """
    ends = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

    def renamed(name: str) -> str:
        return next((name.removesuffix(old) + new for old, new in ends.items() if name.endswith(old)), name)

    for name in tensors:
        if renamed(name) != name and renamed(name) in tensors:
            raise InputError(f"{path} has both {name} and {renamed(name)}, which are one; take out the one that is not")
    return {renamed(name): tensor for name, tensor in tensors.items()}


def _without_extras(
    path: Path, family: Family, tensors: Mapping[str, Tensor], known: set[str], places: Mapping[str, str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors without copies and without what no model here has, and notes about the latter."""
    kept, left = {}, []
    for name, tensor in tensors.items():
        if name in known:
            kept[name] = tensor
        elif name in family.copies and (first := places.get(family.copies[name], "")) in tensors:
            if not torch.equal(tensor, tensors[first]):
                raise InputError(f"{path}: {name} is not {first}, though its config.json says that they are one")
        elif any(re.fullmatch(pattern, name) for pattern in family.left_out):
            left.append(name)
        else:
            kept[name] = tensor  # named as an error where all names are compared
    buffers = ("position_ids", "attn.bias", "masked_bias", "inv_freq")
    heads = [name for name in left if not name.endswith(buffers)]
    return kept, [f"left out of {path}, as nothing here reads it: {', '.join(heads)}"] if heads else []


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder by the names in its files, mapped into memory.

    Raises:
        InputError: as in `open_folder`.
    """
    if (path / WHOLE).is_file():
        return _mapped(path / WHOLE)
    if (path / INDEX).is_file():
        return _shards(path)
    names = {file.name for file in path.iterdir() if file.suffix in PICKLES} - OF_TRAINING
    pickled = sorted(names, key=lambda name: (not name.startswith("pytorch_model"), name))
    if pickled:
        raise InputError(
            f"{path} has its weights as {pickled[0]}, a pickle: it can run any code when it is opened, and is not; "
            "where you trust it, convert it with transformers, by the class that config.json names in architectures: "
            "CLASS.from_pretrained(DIR).save_pretrained(NEW)"
        )
    raise InputError(f"{path} has no {WHOLE} and no {INDEX}; the folder is not whole")


def _mapped(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        reason = files.reason(error)
        raise InputError(f"cannot read {path}: {reason}; the file is damaged, fetch it again") from error


def _shards(path: Path) -> dict[str, Tensor]:
    """Return the tensors of all files that an index names."""
    places = read_table(path / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{path / INDEX} has no weight_map; the file is damaged, fetch it again")
    for shard in places.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard, flags=re.ASCII):
            raise InputError(
                f"{path / INDEX} names {shard!r:.80}, which is no safetensors file in the folder; not opened"
            )
        if not (path / shard).is_file():
            raise InputError(f"{path / shard} is missing, which {INDEX} names; the folder is not whole")
    found: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        for name, tensor in _mapped(path / shard).items():
            if places.get(name) != shard:
                raise InputError(f"{path / shard} has a tensor {name} that {INDEX} does not place there")
            found[name] = tensor
    missing = places.keys() - found.keys()
    if missing:
        name = min(missing)
        raise InputError(f"{path / places[name]} has no tensor {name}, which {INDEX} places there")
    return found


def read_table(path: Path) -> dict[str, Any]:
    """Return the table in a JSON file of a folder.

    Raises:
        InputError: the file is missing or damaged.
    """
    return files.read_table(path, whole="the folder is not whole", mend="fetch it again")


def write_folder(
    path: Path,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    others: Mapping[str, bytes],
    *,
    shard_bytes: int,
) -> None:
    """Write a folder, whole or not at all.

    Args:
        path: where it goes; nothing may be there, or what `files.new_folder` shall replace.
        The others as in `fill_folder`.
    Raises:
        InputError: it cannot be written.
    """
    with files.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with files.new_folder(path) as draft:
        fill_folder(draft, settings, tensors, others, shard_bytes=shard_bytes, named=path)


def fill_folder(
    draft: Path,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    others: Mapping[str, bytes],
    *,
    shard_bytes: int,
    named: Path,
) -> None:
    """Write the files of a folder into one that is there and empty.

    Args:
        settings: of config.json. tensors: by the file's names. others: further files by name.
        shard_bytes: of one file; more makes several and an index. A larger tensor has a file of its own.
        named: the folder as the user knows it.
    Raises:
        InputError: it cannot be written.
    """
    parts = shards_of(tensors, shard_bytes)
    count = len(parts)
    names = [WHOLE] if count == 1 else [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    texts = {CONFIG: json.dumps(dict(settings), indent=2) + "\n"}
    if count > 1:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        places = {name: file for file, part in zip(names, parts, strict=True) for name in part}
        texts[INDEX] = json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=2) + "\n"
    for name, part in zip(names, parts, strict=True):
        write_tensors(draft / name, part, named=named / name)
        (draft / name).chmod(0o644)  # safetensors makes it readable by its owner alone, and a server is another
    for name, content in {**{n: t.encode() for n, t in texts.items()}, **others}.items():
        with files.explained(named / name):
            (draft / name).write_bytes(content)


def shards_of(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Return tensors in order, cut where a part would pass `limit` bytes.

    >>> [list(part) for part in shards_of({name: torch.zeros(2) for name in "abc"}, limit=16)]
    [['a', 'b'], ['c']]
    """
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        more = tensor.numel() * tensor.element_size()
        if parts[-1] and size + more > limit:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += more
    return parts
