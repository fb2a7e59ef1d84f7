"""What a run keeps of the Hugging Face folder that it was made from, so that an export can be the same folder again.

    imported/config.json            its settings: the family's name, ids of control symbols, ...
    imported/generation_config.json how it writes, where it says that
    imported/unread.safetensors     rows that no pass reads and our model does not have, where there are any

Read next: `../../exporting.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from minillm.checkpoint import files
from minillm.checkpoint.hf.families import FAMILIES
from minillm.checkpoint.hf.folder import ModelFolder, read_table
from minillm.checkpoint.native import read_tensors, write_tensors
from minillm.errors import InputError

FOLDER, UNREAD, GENERATION = "imported", "unread.safetensors", "generation_config.json"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """settings: of its config.json. unread: rows by the file's names without prefix. generation: the content of
    generation_config.json, which nothing here reads; None: there is none.
    """

    settings: Mapping[str, Any]
    unread: Mapping[str, Tensor]
    generation: bytes | None = None

    @classmethod
    def of(cls, folder: ModelFolder) -> Origin:
        """Return what is to be kept of a folder."""
        return cls(settings=folder.settings, unread=folder.unread(), generation=_content(folder.path / GENERATION))

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
        if settings.get("model_type") not in FAMILIES:
            raise InputError(f"{place / 'config.json'} is damaged: its model_type is none of {', '.join(FAMILIES)}")
        return cls(settings=settings, unread=unread, generation=_content(place / GENERATION))

    def write(self, run: Path) -> None:
        """Keep it in a run's folder.

        Raises:
            InputError: it cannot be written.
        """
        with files.new_folder(run / FOLDER) as draft:
            text = json.dumps(dict(self.settings), indent=2) + "\n"
            with files.explained(run / FOLDER / "config.json"):
                (draft / "config.json").write_text(text, encoding="utf-8")
                if self.generation is not None:
                    (draft / GENERATION).write_bytes(self.generation)
            if self.unread:
                write_tensors(draft / UNREAD, self.unread, named=run / FOLDER / UNREAD)


def _content(path: Path) -> bytes | None:
    """Return what is in a file, None where there is none."""
    with files.explained(path):
        return path.read_bytes() if path.is_file() else None
