"""What a user of llama.cpp is told at export; that it is so, `tests/interop` measures."""

import pytest

from minillm.checkpoint.hf.llama_cpp import llama_cpp_notes
from minillm.model.config import ModelConfig
from minillm.tokenizer.byte import ByteTokenizer
from minillm.tokenizer.config import TokenizerConfig
from minillm.tokenizer.training import train_tokenizer


@pytest.mark.parametrize(
    "model_type, window, told",
    [
        ("llama", None, []),
        ("qwen3", None, ["add_space_prefix=bool:false"]),
        ("mistral", 16, ["past 16 tokens"]),
        ("mistral", 64, []),
    ],
)
def test_notes(model_type, window, told):
    """A line for each family that differs, none where the window is as long as the context."""
    tokenizer = train_tokenizer(
        TokenizerConfig(kind="bpe", vocab_size=300, threads=1), ["the cat sat on the mat\n"] * 9
    )
    model = ModelConfig(width=8, num_heads=1, context=64, window=window, global_every=0)
    notes = llama_cpp_notes(model_type, model, tokenizer)
    assert len(notes) == len(told) and all(word in note for word, note in zip(told, notes, strict=True))
    assert not llama_cpp_notes("qwen3", model, ByteTokenizer())
