"""What llama.cpp and lm-evaluation-harness said when they were last run: ids, figures, and a GGUF file that is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from gguf import GGUFReader
from rolling import evaluated, log_likelihood, texts
from transformers import AutoTokenizer

from minillm.checkpoint.native import read_tensors
from minillm.exporting import export_model

# our places -> llama.cpp's, in a block
PLACES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads((tiny.RECORDED / "llama.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def gguf() -> GGUFReader:
    return GGUFReader(tiny.RECORDED / "llama.gguf")


@pytest.fixture(scope="module")
def bpe() -> Any:
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, bpe: Any) -> Any:
    """The folder of the tiny Llama as it is exported now."""
    folder = tmp_path_factory.mktemp("exported") / "llama"
    export_model(tiny.model("llama"), folder, tokenizer=bpe)
    return folder


def test_ids_are_llama_cpps(recorded: dict[str, Any], bpe: Any, exported: Any) -> None:
    """Ours, and transformers' on the exported folder, for odd strings."""
    theirs = AutoTokenizer.from_pretrained(exported)
    assert len(recorded["ids"]) > 200
    for text, ids in recorded["ids"].items():
        assert [1, *bpe.encode(text)] == ids == theirs(text)["input_ids"], repr(text)


def test_logits_are_llama_cpps(recorded: dict[str, Any]) -> None:
    """Those after the last token of the prompt, within 1e-3."""
    with torch.no_grad():
        logits = tiny.model("llama").logits(torch.tensor([recorded["prompt"]]))[0, -1]
    assert np.abs(logits.numpy() - np.array(recorded["last_logits"])).max() < 1e-3
    assert recorded["largest_difference_of_logits"] < 1e-3


def test_the_file_has_the_exported_tensors(gguf: GGUFReader, exported: Any) -> None:
    """Each of them bit for bit; rows of queries and keys in llama.cpp's order, pairs of columns side by side."""
    theirs = {tensor.name: tensor.data for tensor in gguf.tensors}
    own = {name: tensor.numpy() for name, tensor in read_tensors(exported / "model.safetensors").items()}
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    for layer in range(2):
        places = PLACES.items()
        names |= {f"blk.{layer}.{there}.weight": f"model.layers.{layer}.{here}.weight" for here, there in places}
    assert theirs.keys() == names.keys() and set(names.values()) == own.keys()
    for there, here in names.items():
        wanted = own[here]
        if "attn_q" in there or "attn_k" in there:
            heads = 4 if "attn_q" in there else 2
            halves = wanted.reshape(heads, 2, -1, wanted.shape[1])  # (H, two, D/2, C)
            wanted = halves.swapaxes(1, 2).reshape(wanted.shape)
        assert np.array_equal(theirs[there], wanted), there


def test_the_file_has_the_exported_settings(gguf: GGUFReader, bpe: Any) -> None:
    """What llama.cpp needs of the model and of the tokenizer."""

    def value(name: str) -> Any:
        field = gguf.get_field(name)
        assert field is not None, name
        return field.contents()

    wanted = {
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.block_count": 2,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 400,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 3,
        "tokenizer.ggml.tokens": [piece for piece, _ in bpe.vocabulary()],
    }
    assert {name: value(name) for name in wanted} == wanted


def test_the_harness_said_what_evaluate_says(bpe: Any) -> None:
    """Log-likelihoods of whole texts by the tiny Llama, and bits per byte of all."""
    said = json.loads((tiny.RECORDED / "lm_eval.json").read_text(encoding="utf-8"))
    model, ids = tiny.model("llama"), [bpe.encode(text) for text in texts()]
    wanted = [log_likelihood(model, text, bpe.specials.bos) for text in ids]
    assert said["log_likelihoods"] == pytest.approx(wanted, rel=1e-5)
    whole = evaluated(model, ids, bpe.specials.bos, num_bytes=sum(len(text.encode()) for text in texts()))
    assert said["bits_per_byte"] == pytest.approx(whole.bits_per_byte, rel=1e-5)


def test_one_lock_pins_a_package() -> None:
    """The harness runs beside the torch and the transformers of constraints.txt; its own lock has the rest alone."""
    locks = [
        {line.partition("==")[0].lower().replace("_", "-") for line in path.read_text().splitlines() if "==" in line}
        for path in (Path(__file__).parents[2] / "constraints.txt", Path(__file__).parent / "lm_eval.txt")
    ]
    assert {"torch", "transformers"} <= locks[0] and "lm-eval" in locks[1] and not locks[0] & locks[1]
