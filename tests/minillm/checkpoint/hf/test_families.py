"""Every family computes what transformers computes, and goes out as it came in."""

from __future__ import annotations

import copy

import pytest
import torch
from minillm_kernels.dispatch import backend
from peers import CLOSE, export, far, language_model
from safetensors.torch import load_file

import minillm
from minillm.checkpoint.hf.families import FAMILIES
from minillm.exporting import export_model, export_run
from minillm.importing import import_folder
from minillm.model.config import ModelConfig


@torch.no_grad()
def test_logits_and_hidden_states_are_those_of_transformers(peer, family, head, texts, padded) -> None:
    """In a padded batch and packed end to end; transformers reads the padded batch, and each text alone."""
    there = peer(family, head)
    model = minillm.load(there.folder).model
    table, lengths = padded
    mask = (torch.arange(table.shape[1]) < lengths[:, None]).long()
    theirs = there.model(table, attention_mask=mask, output_hidden_states=True)
    hidden = model(table, lengths=lengths)
    real = mask.bool()
    assert far(hidden[real], theirs.hidden_states[-1][real]) < CLOSE
    assert far(model.project(hidden)[real], theirs.logits[real]) < CLOSE

    alone = torch.cat([there.model(text[None]).logits[0] for text in texts])
    assert far(model.logits(table, lengths=lengths)[real], alone) < CLOSE
    numbers = torch.cat([torch.full_like(text, n) for n, text in enumerate(texts)])[None]
    places = torch.cat([torch.arange(len(text)) for text in texts])[None]
    packed = model.logits(torch.cat(texts)[None], segments=numbers, positions=places)
    assert far(packed[0], alone) < CLOSE


@torch.no_grad()
def test_the_fused_kernels_give_the_same(peer, family, head) -> None:
    """Interpreted: two texts of a handful of tokens."""
    there = peer(family, head)
    model = minillm.load(there.folder).model
    table, lengths = torch.tensor([[5, 9, 30, 7, 8, 11, 4], [6, 3, 12, 40, 0, 0, 0]]), torch.tensor([7, 4])
    mask = torch.arange(7) < lengths[:, None]
    if family == "roberta":
        table = table.where(mask, 1)
    wanted = there.model(table, attention_mask=mask.long()).logits
    with backend("fused"):
        came = model.logits(table, lengths=lengths)
    assert far(came[mask], wanted[mask]) < CLOSE


@torch.no_grad()
def test_a_model_without_a_head(peer, family, padded) -> None:
    """BertModel and its like: hidden states, and of BERT and RoBERTa the pooler's."""
    there = peer(family)
    model = minillm.load(there.folder).model
    table, lengths = padded
    mask = torch.arange(table.shape[1]) < lengths[:, None]
    theirs = there.model(table, attention_mask=mask.long())
    hidden = model(table, lengths=lengths)
    assert far(hidden[mask], theirs.last_hidden_state[mask]) < CLOSE
    pooled = theirs.get("pooler_output")
    assert (model.pooler is not None) == (pooled is not None) == (family in ("bert", "roberta"))
    if pooled is not None:
        assert far(model.pooled(hidden), pooled) < CLOSE


@pytest.mark.parametrize("bare", [False, True], ids=["head", "bare"])
def test_what_comes_in_goes_out_byte_for_byte(peer, family, head, bare, tmp_path) -> None:
    """By way of a run folder; and transformers opens the result with nothing missing and nothing too many."""
    there = peer(family, "" if bare else head)
    import_folder(there.folder, tmp_path / "run")
    made = export_run(tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (there.folder / "model.safetensors").read_bytes()
    assert made.architecture == type(there.model).__name__ and made.model_type == family
    kind = type(there.model)
    again, information = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(information.values()), information
    came, wanted = again.state_dict(), there.model.state_dict()
    assert came.keys() == wanted.keys() and all(torch.equal(came[name], wanted[name]) for name in wanted)
    old, new = there.model.config.to_dict(), again.config.to_dict()
    assert {key for key in old if new[key] != old[key]} <= {"_name_or_path"}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@torch.no_grad()
def test_the_output_weight_tied_or_not(peer, family, head, tied, tmp_path) -> None:
    """Both ways round."""
    there = peer(family, head, tie_word_embeddings=tied)
    loaded = minillm.load(there.folder)
    assert loaded.model.config.tied_embeddings is tied
    tokens = torch.arange(3, 12)[None]
    assert far(loaded.model.logits(tokens), there.model(tokens).logits) < CLOSE
    export(loaded, tmp_path / "out")
    again, information = type(there.model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(information.values()), information
    assert torch.equal(again.eval()(tokens).logits, there.model(tokens).logits)


EPS = {"bert": "layer_norm_eps", "roberta": "layer_norm_eps", "modernbert": "norm_eps", "gpt2": "layer_norm_epsilon"}
EPS |= dict.fromkeys(("llama", "mistral", "qwen3"), "rms_norm_eps")
VARIANTS = [
    *(pytest.param(name, {key: 0.1}, id=f"{name}-eps") for name, key in EPS.items()),
    pytest.param("bert", {"hidden_act": "gelu_new"}, id="bert-tanh"),
    pytest.param("bert", {"hidden_act": "relu", "type_vocab_size": 1}, id="bert-relu"),
    pytest.param("distilbert", {"activation": "relu", "sinusoidal_pos_embds": True}, id="distilbert-relu"),
    pytest.param("gpt2", {"activation_function": "relu", "n_inner": 40}, id="gpt2-relu"),
    pytest.param("llama", {"attention_bias": True, "mlp_bias": True}, id="llama-biases"),
    pytest.param("llama", {"head_dim": 4, "num_key_value_heads": 4, "rope_theta": 500.0}, id="llama-head-width"),
    pytest.param("mistral", {"sliding_window": None}, id="mistral-no-window"),
    pytest.param("modernbert", {"global_attn_every_n_layers": 2, "global_rope_theta": 300.0}, id="modernbert-every-2"),
    pytest.param("modernbert", {"local_rope_theta": 50.0, "local_attention": 12}, id="modernbert-local"),
    pytest.param("modernbert", {"global_attn_every_n_layers": 1, "local_attention": 4}, id="modernbert-no-window"),
    pytest.param(
        "qwen3",
        {
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "sliding_window": 4,
            "use_sliding_window": True,
        },
        id="qwen3-windows",
    ),
]


@pytest.mark.parametrize("name, settings", VARIANTS)
@torch.no_grad()
def test_variants_of_a_family(peer, name, settings, tmp_path) -> None:
    """Settings that change the maths change it alike, and survive the way back."""
    there = peer(name, language_model(name), **settings)
    loaded = minillm.load(there.folder)
    tokens = torch.arange(3, 23)[None]
    wanted = there.model(tokens).logits
    assert far(loaded.model.logits(tokens), wanted) < CLOSE
    export(loaded, tmp_path / "out")
    again = type(there.model).from_pretrained(tmp_path / "out").eval()
    assert torch.equal(again(tokens).logits, wanted)


PRETRAINED_HERE = [
    pytest.param({"kind": "encoder", "norm_position": "post", "embedding_norm": True, "token_types": 2}
                 | {"activation": "gelu", "head": "transform", "head_bias": True, "pooler": True}, "bert", id="bert"),
    pytest.param({"kind": "encoder", "norm_position": "post", "embedding_norm": True, "norm_eps": 1e-12}
                 | {"activation": "gelu", "head": "transform", "head_bias": True}, "distilbert", id="distilbert"),
    pytest.param({"kind": "encoder", "position": "rotary", "activation": "geglu", "bias": False, "window": 6}
                 | {"global_every": 3, "embedding_norm": True, "head": "transform", "head_bias": True},
                 "modernbert", id="modernbert"),
    pytest.param({"dropout": 0.1}, "gpt2", id="gpt2"),
    pytest.param({"norm": "rms_norm", "position": "rotary", "activation": "swiglu", "bias": False},
                 "llama", id="llama"),
    pytest.param({"norm": "rms_norm", "position": "rotary", "activation": "swiglu", "bias": False, "window": 5}
                 | {"global_every": 0, "tied_embeddings": False}, "mistral", id="mistral"),
    pytest.param({"norm": "rms_norm", "position": "rotary", "activation": "swiglu", "bias": False, "qk_norm": True},
                 "qwen3", id="qwen3"),
]  # fmt: skip


@pytest.mark.parametrize("settings, name", PRETRAINED_HERE)
@torch.no_grad()
def test_a_model_of_ours_opens_there_as_the_family_that_it_is(settings, name, tmp_path) -> None:
    """Nothing is missing or too many, and the logits are equal."""
    import transformers

    from minillm.model.transformer import build_model

    torch.manual_seed(0)
    config = ModelConfig(vocab_size=61, context=24, num_layers=3, width=32, num_heads=4, **settings)
    model = build_model(config).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    made = export_model(model, tmp_path / "out", tokenizer=None)
    assert made.model_type == name
    kind = getattr(transformers, made.architecture)
    there, information = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(information.values()), information
    tokens = torch.arange(3, 23)[None]
    assert far(there.eval()(tokens).logits, model.logits(tokens)) < CLOSE
    assert any("pooler" in note for note in made.notes) == config.pooler


def test_shards_go_out_and_come_in(peer, family, head, tmp_path) -> None:
    """Several files and an index, which transformers reads, and we."""
    there = peer(family, head)
    loaded = minillm.load(there.folder)
    export(loaded, tmp_path / "out", shard_bytes=20_000)
    shards = sorted(tmp_path.glob("out/model-*.safetensors"))
    assert len(shards) >= 3 and all(path.stat().st_size < 24_000 for path in shards)
    again = type(there.model).from_pretrained(tmp_path / "out")
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in there.model.state_dict().items())
    back = minillm.load(tmp_path / "out").model.state_dict()
    assert all(torch.equal(t, back[name]) for name, t in loaded.model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_half_precision_is_read_as_float32(peer, family, head, dtype, tmp_path) -> None:
    """Each number as it is in the file."""
    copy.deepcopy(peer(family, head).model).to(dtype).save_pretrained(tmp_path)  # the others share it as it is
    loaded = minillm.load(tmp_path)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    first = FAMILIES[family].prefix + next(FAMILIES[family].body(loaded.model.config)).theirs
    table = load_file(tmp_path / "model.safetensors")[first]
    assert table.dtype == dtype and torch.equal(loaded.model.embeddings.tokens.weight, table.float())
