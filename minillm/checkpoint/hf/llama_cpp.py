"""Where llama.cpp computes something else from an exported folder without saying so, and what to do.

What it cannot read ends in an error of its converter. These two do not; `tests/interop` measures both.

Read next: `tokenizer_files.py`.
"""

from __future__ import annotations

from minillm.model.config import ModelConfig
from minillm.tokenizer.base import Tokenizer
from minillm.tokenizer.pieces import BPETokenizer

OVERRIDE = "--override-kv tokenizer.ggml.add_space_prefix=bool:false"


def llama_cpp_notes(model_type: str, model: ModelConfig, tokenizer: Tokenizer | None) -> list[str]:
    """Return a line for each difference that a user of llama.cpp would not be told of.

    Args:
        model_type: what the folder is written as.
    """
    notes = []
    if model_type == "qwen3" and isinstance(tokenizer, BPETokenizer):
        notes.append(f"llama.cpp puts a space before every text for Qwen-3 unless it is started with {OVERRIDE}")
    if model_type == "mistral" and model.window is not None and model.window < model.context:
        notes.append(f"llama.cpp ignores Mistral's window: past {model.window} tokens it computes other numbers")
    return notes
