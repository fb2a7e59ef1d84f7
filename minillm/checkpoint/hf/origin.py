"""What a run keeps of the Hugging Face folder that it was made from, so that an export can be the same folder again.

    imported/config.json            its settings: the family's name, ids of control symbols, ...
    imported/generation_config.json how it writes, where it says that
    imported/dtypes.json            which of its tensors were in half precision, where any were
    imported/unread.safetensors     rows that no pass reads and our model does not have, where there are any

Read next: `../../exporting.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.checkpoint import files
from minillm.checkpoint.hf.families import FAMILIES
from minillm.checkpoint.hf.folder import CONFIG, ModelFolder, read_table
from minillm.checkpoint.native import read_tensors, write_tensors
from minillm.errors import InputError

FOLDER, UNREAD, DTYPES, GENERATION = "imported", "unread.safetensors", "dtypes.json", "generation_config.json"
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """settings: of its config.json. unread: rows, halves: names of `HALVES`; by the file's names without prefix.
    generation: the content of generation_config.json; None: there is none.
    """

    settings: Mapping[str, Any]
    unread: Mapping[str, Tensor]
    halves: Mapping[str, str] = dataclasses.field(default_factory=dict)
    generation: bytes | None = None

    @classmethod
    def of(cls, folder: ModelFolder) -> Origin:
        """Return what is to be kept of a folder."""
        names = {dtype: name for name, dtype in HALVES.items()}
        halves = {
            name.removeprefix(folder.prefix): names[tensor.dtype]
            for name, tensor in folder.tensors.items()
            if tensor.dtype in names
        }
        generation = _content(folder.path / GENERATION)
        return cls(settings=folder.settings, unread=folder.unread(), halves=halves, generation=generation)

    @classmethod
    def read(cls, run: Path) -> Origin | None:
        """Return what a run kept, None where it was not imported.

        Raises:
            InputError: it is damaged.
        """
        place = run / FOLDER
        if not (place / "config.json").exists():
            return None
        unread = read_tensors(place / UNREAD) if (place / UNREAD).exists() else {}
        settings = read_table(place / "config.json")
        if str(settings.get("model_type")) not in FAMILIES:
            raise InputError(f"{place / 'config.json'} is damaged: its model_type is none of {', '.join(FAMILIES)}")
        halves = read_table(place / DTYPES) if (place / DTYPES).exists() else {}
        if not all(isinstance(name, str) and name in HALVES for name in halves.values()):
            raise InputError(f"{place / DTYPES} is damaged: it names another type than {', '.join(HALVES)}")
        return cls(settings=settings, unread=unread, halves=halves, generation=_content(place / GENERATION))

    def ends(self) -> frozenset[int]:
        """Return the tokens that end a text, as generation_config.json has them; where there is none, config.json.

        Raises:
            InputError: that file is damaged.
        """
        table, name = self.settings, CONFIG
        if self.generation is not None:
            name = GENERATION
            try:
                table = json.loads(self.generation)
                if not isinstance(table, dict):
                    raise ValueError("no JSON object")
            except (ValueError, RecursionError) as error:
                raise InputError(f"{GENERATION} is damaged ({error}); take it from where it was made") from error
        found = table.get("eos_token_id")
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(isinstance(token, int) and token >= 0 for token in ids):
            raise InputError(f"{name}: eos_token_id must be the number of a token, or a list of such, got {found!r}")
        return frozenset(ids)

    def write(self, run: Path) -> None:
        """Keep it in a run's folder.

        Raises:
            InputError: it cannot be written.
        """
        tables = {"config.json": self.settings} | ({DTYPES: self.halves} if self.halves else {})
        with files.new_folder(run / FOLDER) as draft:
            for name, table in tables.items():
                with files.explained(run / FOLDER / name):
                    (draft / name).write_text(json.dumps(dict(table), indent=2) + "\n", encoding="utf-8")
            if self.generation is not None:
                with files.explained(run / FOLDER / GENERATION):
                    (draft / GENERATION).write_bytes(self.generation)
            if self.unread:
                write_tensors(draft / UNREAD, self.unread, named=run / FOLDER / UNREAD)


def _content(path: Path) -> bytes | None:
    """Return what is in a file, None where there is none."""
    with files.explained(path):
        return path.read_bytes() if path.is_file() else None
