"""Small models of transformers' own, at random weights, saved as it saves them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import language_model

VOCAB, CONTEXT = 61, 24
BERT_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
}
LLAMA_SIZES = BERT_SIZES | {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES: dict[str, dict[str, Any]] = {
    "bert": BERT_SIZES,
    "roberta": BERT_SIZES | {"max_position_embeddings": CONTEXT + 2, "type_vocab_size": 1},
    "distilbert": {
        "vocab_size": VOCAB,
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": CONTEXT,
    },
    "modernbert": BERT_SIZES
    | {"num_hidden_layers": 5, "local_attention": 6, "pad_token_id": 0}
    | {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    "gpt2": {
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": CONTEXT,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
    "llama": LLAMA_SIZES,
    "mistral": LLAMA_SIZES | {"sliding_window": 5},
    "qwen3": LLAMA_SIZES | {"head_dim": 16},
}
PAD = dict.fromkeys(SIZES, 0) | {"roberta": 1}


@dataclass(frozen=True)
class Peer:
    """A model of transformers, and the folder that it was saved into."""

    name: str
    model: Any
    folder: Path


@pytest.fixture(scope="session")
def peer(tmp_path_factory) -> Callable[..., Peer]:
    """Return a function: family, the Auto class's ending such as "MaskedLM", settings -> a Peer; each is made once."""
    import transformers

    made: dict[Any, Peer] = {}

    def make(name: str, ending: str = "", **settings: Any) -> Peer:
        key = (name, ending, repr(settings))
        if key not in made:
            torch.manual_seed(len(made))
            config = transformers.AutoConfig.for_model(name, **(SIZES[name] | settings))
            kind = getattr(transformers, f"AutoModelFor{ending}" if ending else "AutoModel")
            model = kind.from_config(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():  # zero biases and unit gains would hide what is mixed up
                    parameter.add_(0.1 * torch.randn_like(parameter))
            folder = tmp_path_factory.mktemp(f"{name}-{ending or 'model'}")
            model.save_pretrained(folder)
            made[key] = Peer(name, model, folder)
        return made[key]

    return make


@pytest.fixture(params=list(SIZES))
def family(request) -> str:
    """Each family in turn."""
    return request.param


@pytest.fixture
def head(family) -> str:
    """The ending of the family's language-model class."""
    return language_model(family)


@pytest.fixture
def texts(family) -> list[torch.Tensor]:
    """Three rows of tokens of different lengths, the longest as long as the model's context, the shortest of one."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB, (length,), generator=generator) for length in (CONTEXT, 13, 1)]


@pytest.fixture
def padded(family, texts) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows as one table, padded on the right, and their lengths."""
    table = torch.full((len(texts), CONTEXT), PAD[family])
    for row, text in zip(table, texts, strict=True):
        row[: len(text)] = text
    return table, torch.tensor([len(text) for text in texts])


@pytest.fixture
def with_tokenizer(tmp_path) -> Callable[[Path, str], Path]:
    """Return a function: folder, family -> a copy of it with a WordPiece vocabulary as large as the model's."""

    def copied(folder: Path, name: str) -> Path:
        shutil.copytree(folder, tmp_path / "theirs")
        (tmp_path / "theirs/vocab.txt").write_text(vocabulary(name))
        return tmp_path / "theirs"

    return copied


def vocabulary(name: str) -> str:
    """Return letters as WordPieces, the padding where the family has it."""
    control = ["[CLS]", "[PAD]", "[SEP]"] if name == "roberta" else ["[PAD]", "[CLS]", "[SEP]"]
    letters = [chr(ord("a") + n) for n in range(26)]
    pieces = [*control, "[UNK]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), ".", ",", "!", "?"]
    assert len(pieces) == VOCAB
    return "\n".join(pieces) + "\n"
