"""A real BERT of 22.7 million parameters, all-MiniLM-L6-v2: what it computes here and in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import minillm
from minillm.checkpoint.hf.folder import open_folder
from minillm.exporting import export_run
from minillm.importing import import_folder

CLOSE = 1e-5
TALES = Path(__file__).parents[4] / "data/samples/tales.txt"


@pytest.fixture(scope="module")
def there(minilm):
    """transformers' own model and tokenizer."""
    import transformers

    return transformers.BertModel.from_pretrained(minilm).eval(), transformers.AutoTokenizer.from_pretrained(minilm)


@pytest.fixture(scope="module")
def here(minilm):
    """Ours."""
    return minillm.load(minilm)


def sentences() -> list[str]:
    """Return real sentences of very different lengths; the last is more than 512 tokens long."""
    text = TALES.read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()][:12] + ["Yes.", text[:6000]]


@torch.no_grad()
def test_hidden_states_of_real_sentences(here, there) -> None:
    """In one padded batch of 512 columns, framed and cut as transformers does; and the pooler's summary."""
    model, tokenizer = there
    batch = tokenizer(sentences(), padding=True, truncation=True, max_length=512, return_tensors="pt")
    lengths = batch["attention_mask"].sum(dim=1)
    assert batch["input_ids"].shape == (14, 512) and lengths.min() < 5 and lengths.max() == 512
    wanted = model(**batch)
    hidden = here.model(batch["input_ids"], lengths=lengths)
    real = batch["attention_mask"].bool()
    largest = wanted.last_hidden_state[real].abs().max()
    assert (hidden[real] - wanted.last_hidden_state[real]).abs().max() < CLOSE * largest
    assert (here.model.pooled(hidden) - wanted.pooler_output).abs().max() < CLOSE


@torch.no_grad()
def test_a_sentence_alone_and_packed_with_others(here, there) -> None:
    """Read by our tokenizer: eight sentences end to end in one row."""
    model, _ = there
    tokenizer = here.require_tokenizer()
    special = tokenizer.specials
    rows = [torch.tensor([special.cls, *tokenizer.encode(text), special.sep]) for text in sentences()[:8]]
    wanted = torch.cat([model(row[None]).last_hidden_state[0] for row in rows])
    segments = torch.cat([torch.full_like(row, number) for number, row in enumerate(rows)])[None]
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    packed = here.model(torch.cat(rows)[None], segments=segments, positions=positions)[0]
    assert (packed - wanted).abs().max() < CLOSE * wanted.abs().max()


def test_it_goes_out_as_it_came_in(minilm, tmp_path) -> None:
    """Every tensor but a buffer of positions, and the tokenizer's file."""
    assert open_folder(minilm).notes == ()
    import_folder(minilm, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    came, went = load_file(tmp_path / "out/model.safetensors"), load_file(minilm / "model.safetensors")
    assert went.keys() - came.keys() == {"embeddings.position_ids"} and not came.keys() - went.keys()
    assert all(torch.equal(tensor, went[name]) for name, tensor in came.items())
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (minilm / "tokenizer.json").read_bytes()
