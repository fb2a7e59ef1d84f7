"""Which text is learnt from, and how it is cut into sequences: the section [data].

Read next: `corpora.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minillm.config import setting


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text and its layout."""

    input: str = setting("stdlib-docs", "stdlib-docs, stdlib-code, a .txt or .md file, or a folder of them")
    valid_fraction: float = setting(0.1, "share that is held out: of one file's characters, or of several files")
    document_mask: bool = setting(True, "packed: attention and targets never cross from one document into the next")
    layout: Literal["packed", "padded"] = setting(
        "packed", "packed: windows over all documents end to end; padded: a document a row, cut to the context"
    )
    padding_side: Literal["right", "left"] = setting("right", "padded: the side on which short documents are filled up")
    cache: str | None = setting(None, "folder for token shards, to share between runs; none: the run folder")

    def __post_init__(self) -> None:
        if not 0.0 < self.valid_fraction < 1.0:
            raise ValueError(f"data.valid_fraction must be above 0 and below 1, got {self.valid_fraction}")
        if self.cache == "":  # it would be the working directory
            raise ValueError("data.cache is empty; name a folder, or write none")
