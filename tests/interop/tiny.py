"""Tiny models with a trained tokenizer, the same on every machine: what is sent to llama.cpp, and what it said of them.

Read next: `test_recorded.py`, then `test_llama_cpp.py`.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from minillm.model.config import ModelConfig
from minillm.model.transformer import Transformer, build_model
from minillm.tokenizer.base import Tokenizer
from minillm.tokenizer.config import TokenizerConfig
from minillm.tokenizer.training import train_tokenizer

SAMPLES = Path(__file__).parents[2] / "data/samples"
RECORDED = Path(__file__).parent / "recorded"
BASE: dict[str, Any] = {
    "context": 64, "num_layers": 2, "width": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_width": 64,
    "norm": "rms_norm", "position": "rotary", "activation": "swiglu", "bias": False,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-untied": {"tied_embeddings": False},
    "mistral": {"window": 16, "global_every": 0},
    "qwen3": {"qk_norm": True, "head_width": 16},
}
ODD = [
    "The lamp was lit at dusk.",
    "",
    " ",
    "  two  spaces   at every place  ",
    "\tif x:\n\t\treturn\n\n\n    y\r\n",
    "Ｆｕｌｌ　ｗｉｄｔｈ ﬁ ½ Å",
    "汉字和，中文。",
    "😀 👩‍👩‍👧 🇩🇪",
    "e\u0301a\u0308 \u200b\ufeff\u202e",
    "\x00\x01\x1b\x7f\x85\u2028",
    "</s> <s> <unk> <pad> [MASK] [CLS] [SEP] <0x0A>",
    "\u2581\u2581 the\u2581cat",
]
PARTS = ["<s>", "</s>", "[MASK]", "<0x0A>", "the", " ", "  ", "he", "th", "\n", "é", "漢", "--", "ing", "<", "0x", "aa"]


def texts() -> list[str]:
    """Return odd strings, strings put together from odd parts, and whole texts."""
    rng = random.Random(0)
    mixed = ["".join(rng.choice(PARTS) for _ in range(rng.randint(1, 14))) for _ in range(200)]
    return [*ODD, *mixed, *(path.read_text() for path in sorted(SAMPLES.glob("*.txt")))]


def tokenizer(kind: Any = "bpe") -> Tokenizer:
    """Return a tokenizer trained on the samples; one thread, as the result depends on it."""
    samples = [path.read_text() for path in sorted(SAMPLES.glob("*.txt"))]
    return train_tokenizer(TokenizerConfig(kind=kind, vocab_size=400, threads=1), samples)


def model(name: str, vocab_size: int = 400) -> Transformer:
    """Return a model whose weights are large enough that every part of it shows in the logits."""
    made = build_model(ModelConfig(vocab_size=vocab_size, **BASE | MODELS[name])).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made


def prompt(length: int) -> list[int]:
    """Return token ids to take logits of."""
    return [1, *torch.randint(7, 400, (length - 1,), generator=torch.Generator().manual_seed(2)).tolist()]
