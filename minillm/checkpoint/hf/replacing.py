"""Which folders an export may take the place of: earlier exports, with nothing of somebody's own among their files.

    out/                        config.json of a known family, safetensors, and files that such folders have beside them
    out/adapter/  out/base/     an adapter in PEFT's format, and such a folder

Read next: `../../exporting.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from minillm.checkpoint import files
from minillm.checkpoint.hf.families import FAMILIES
from minillm.checkpoint.hf.folder import CONFIG, INDEX, WHOLE, read_table
from minillm.errors import InputError

ADAPTER_FOLDER, BASE_FOLDER = "adapter", "base"  # the two parts of an exported adapter
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors"}
MODEL_FILES = {CONFIG, WHOLE, INDEX, "generation_config.json", "chat_template.jinja", "chat_template.json"}
MODEL_FILES |= {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
MODEL_FILES |= {"tokenizer.model", "vocab.txt", "vocab.json", "merges.txt"}
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors", flags=re.ASCII)


def check_free(out: Path, overwrite: bool, obstacle: Callable[[Path], str | None]) -> None:
    """Raise InputError where something stands that an export must not replace.

    Args:
        overwrite: let an earlier export be replaced.
        obstacle: `model_obstacle` or `adapter_obstacle`, by what is exported.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose another --out")
    with files.explained(out):
        if not out.exists() or not any(out.iterdir()):
            return
        reason = obstacle(out)
    if reason is not None:
        raise InputError(f"{out} is not empty and holds no export to replace: {reason}; choose another --out")
    if not overwrite:
        raise InputError(f"{out} already holds an export; choose another --out or add --overwrite")


def model_obstacle(folder: Path) -> str | None:
    """Return what keeps a folder from being an exported model and nothing else, None where it is one."""
    if not (folder / CONFIG).is_file():
        return f"it has no {CONFIG}"
    try:
        kind = read_table(folder / CONFIG).get("model_type")
    except InputError:
        kind = None
    if not isinstance(kind, str) or kind not in FAMILIES:
        return f"its {CONFIG} names none of the families {', '.join(FAMILIES)}"
    if not ((folder / WHOLE).is_file() or (folder / INDEX).is_file()):
        return f"it has no {WHOLE} and no {INDEX}"
    return _stranger(folder, lambda name: name in MODEL_FILES or SHARD.fullmatch(name) is not None)


def adapter_obstacle(folder: Path) -> str | None:
    """Return what keeps a folder from being an exported adapter with its base, None where it is one."""
    for path in (folder / ADAPTER_FOLDER, folder / BASE_FOLDER):
        if not path.is_dir():
            return f"it has no folder {path.name}"
    others = sorted({path.name for path in folder.iterdir()} - {ADAPTER_FOLDER, BASE_FOLDER})
    if others:
        return f"{others[0]} is none of an export's files"
    for name in sorted(ADAPTER_FILES):
        if not (folder / ADAPTER_FOLDER / name).is_file():
            return f"{ADAPTER_FOLDER} has no {name}"
    if other := _stranger(folder / ADAPTER_FOLDER, ADAPTER_FILES.__contains__):
        return other
    inside = model_obstacle(folder / BASE_FOLDER)
    return inside and inside.replace("it has", f"{BASE_FOLDER} has", 1)


def _stranger(folder: Path, known: Callable[[str], bool]) -> str | None:
    """Return words about the first entry of a folder that is no file of an export, None where there is none."""
    other = files.other_entry(folder, known)
    return None if other is None else f"{other} is none of an export's files"
