"""Every key of a config.json is read as transformers reads it, and written so that nothing of a model is lost."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

import pytest
import torch
from peers import CLOSE, export, far, language_model

import minillm
from minillm.checkpoint.hf.families import FAMILIES, family_of
from minillm.checkpoint.hf.family import PLAIN
from minillm.checkpoint.hf.folder import open_folder, read_model
from minillm.checkpoint.hf.keys import MEANINGLESS, Keys
from minillm.errors import InputError
from minillm.exporting import export_model, export_run
from minillm.importing import import_folder
from minillm.model.config import ModelConfig

OLDER = [
    pytest.param("llama", {"rope_theta": 50.0}, id="llama-theta"),
    pytest.param("llama", {"rope_scaling": {"rope_type": "default", "rope_theta": 50.0}}, id="llama-scaling"),
    pytest.param("llama", {"rope_theta": 50.0, "rope_scaling": {"rope_type": "default"}}, id="llama-scaling-theta"),
    pytest.param("mistral", {"rope_theta": 50.0}, id="mistral-theta"),
    pytest.param("qwen3", {"rope_theta": 50.0, "layer_types": None}, id="qwen3-theta"),
    pytest.param("modernbert", {"global_rope_theta": 300.0, "local_rope_theta": 50.0}, id="modernbert-thetas"),
    pytest.param(
        "modernbert",
        {"global_attn_every_n_layers": 2, "layer_types": None, "global_rope_theta": 300.0, "local_rope_theta": 50.0},
        id="modernbert-every-2",
    ),
    pytest.param(
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0, "layer_types": None},
        id="qwen3-window",
    ),
]


@pytest.mark.parametrize("name, settings", OLDER)
@torch.no_grad()
def test_keys_of_older_folders(peer, name, settings, tmp_path) -> None:
    """What config.json said before there were `rope_parameters` and `layer_types` is read as transformers reads it."""
    there = peer(name, language_model(name))
    shutil.copytree(there.folder, tmp_path / "theirs")
    path = tmp_path / "theirs/config.json"
    table = json.loads(path.read_text())
    if any("theta" in key for key in settings):
        table.pop("rope_parameters")
    path.write_text(json.dumps({key: value for key, value in (table | settings).items() if value is not None}))
    tokens = torch.arange(3, 23)[None]
    wanted = type(there.model).from_pretrained(tmp_path / "theirs").eval()(tokens).logits
    assert far(minillm.load(tmp_path / "theirs").model.logits(tokens), wanted) < CLOSE
    assert far(there.model(tokens).logits, wanted) > 100 * CLOSE


@pytest.mark.parametrize(
    "name, settings",
    [
        ("llama", {"rope_theta": 700.0, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
        ("llama", {"rope_theta": 700.0, "rope_scaling": {"rope_type": "default", "rope_theta": 50.0}}),
        ("modernbert", {"global_rope_theta": 700.0, "rope_parameters": {"full_attention": {"rope_theta": 50.0}}}),
    ],
    ids=["llama-parameters", "llama-scaling", "modernbert-parameters"],
)
@torch.no_grad()
def test_a_rotary_base_that_is_said_twice_goes_out_as_it_is_read(peer, name, settings, tmp_path) -> None:
    """The old key has another number, which counted as soon as the new one was left out."""
    there = peer(name, language_model(name))
    shutil.copytree(there.folder, tmp_path / "theirs")
    path = tmp_path / "theirs/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    import_folder(tmp_path / "theirs", tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    tokens = torch.arange(3, 23)[None]
    wanted = type(there.model).from_pretrained(tmp_path / "theirs").eval()(tokens).logits
    assert torch.equal(type(there.model).from_pretrained(tmp_path / "out").eval()(tokens).logits, wanted)
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["global_rope_theta" if name == "modernbert" else "rope_theta"] == 50.0  # llama.cpp reads no other


@pytest.mark.parametrize("name", ["mistral", "qwen3"])
def test_a_window_of_null_is_none(peer, name, tmp_path) -> None:
    """The default is of a missing key alone; it is longer than these texts, so that no logit would show it."""
    shutil.copytree(peer(name, "CausalLM").folder, tmp_path / "theirs")
    path = tmp_path / "theirs/config.json"
    table = json.loads(path.read_text()) | {"use_sliding_window": True, "max_window_layers": 0}
    table.pop("layer_types", None)
    for window in (None, 7):
        path.write_text(json.dumps(table | {"sliding_window": window}))
        assert open_folder(tmp_path / "theirs").model.window == window


# Of each family settings that are not transformers' defaults, so that one which is lost on the way is seen.
UNUSUAL: dict[str, dict[str, Any]] = {
    "bert": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2, "hidden_act": "relu"}
    | {"layer_norm_eps": 1e-3, "type_vocab_size": 3, "tie_word_embeddings": False},
    "roberta": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
    | {"layer_norm_eps": 1e-3, "type_vocab_size": 3, "tie_word_embeddings": False},
    "distilbert": {"dropout": 0.3, "attention_dropout": 0.2, "activation": "relu", "tie_word_embeddings": False},
    "modernbert": {"embedding_dropout": 0.3, "mlp_dropout": 0.3, "attention_dropout": 0.2, "norm_eps": 1e-3}
    | {"global_rope_theta": 300.0, "local_rope_theta": 50.0, "global_attn_every_n_layers": 2}
    | {"local_attention": 4, "tie_word_embeddings": False},
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.2, "layer_norm_epsilon": 1e-3}
    | {"activation_function": "relu", "n_inner": 40, "tie_word_embeddings": False},
    "llama": {"attention_dropout": 0.2, "rms_norm_eps": 1e-3, "rope_theta": 500.0, "head_dim": 4}
    | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"attention_dropout": 0.2, "rms_norm_eps": 1e-3, "rope_theta": 500.0, "head_dim": 4}
    | {"sliding_window": 7, "tie_word_embeddings": True},
    "qwen3": {"attention_dropout": 0.2, "rms_norm_eps": 1e-3, "rope_theta": 500.0, "tie_word_embeddings": True}
    | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0},
}


def test_every_setting_comes_in_and_goes_out_without_the_folder_that_it_came_from(peer, family, head, tmp_path) -> None:
    """As of a model that was pretrained here: what its own configuration does not say, nothing else does.

    Dropout and the spread of initial weights are among them, which no logit of a model in use would show.
    """
    import transformers

    there = peer(family, head, initializer_range=0.05, **UNUSUAL[family])
    loaded = minillm.load(there.folder)
    config = loaded.model.config
    assert (config.attention_dropout, config.init_std) == (0.2, 0.05)
    assert config.dropout == (0.3 if family not in ("llama", "mistral", "qwen3") else 0.0)
    export_model(loaded.model, tmp_path / "out", tokenizer=None, family=family)
    old, new = there.model.config.to_dict(), transformers.AutoConfig.from_pretrained(tmp_path / "out").to_dict()
    usual = transformers.AutoConfig.for_model(family).to_dict()
    lost = {name for name in old if new.get(name) != old[name]} - {"_name_or_path"}
    assert lost <= {f"{symbol}_token_id" for symbol in ("pad", "bos", "eos", "cls", "sep")}  # a tokenizer's
    assert all(old[name] != usual.get(name) for name in UNUSUAL[family] if name in old)


def outcome(name: str, table: dict[str, Any]) -> ModelConfig | None:
    """Return the model of a config.json, its numbers of heads said in so many words; None where it is refused."""
    try:
        config = read_model(FAMILIES[name], Keys(table, "config.json"))
    except InputError:
        return None
    return dataclasses.replace(config, num_kv_heads=config.kv_heads, head_width=config.head_dim)


SIZES_ASKED_FOR = (
    "vocab_size max_position_embeddings num_hidden_layers hidden_size num_attention_heads intermediate_size"
)
REQUIRED = dict.fromkeys(("bert", "roberta", "modernbert", "llama", "mistral", "qwen3"), SIZES_ASKED_FOR)
REQUIRED |= {"distilbert": "vocab_size max_position_embeddings n_layers dim n_heads hidden_dim"}
REQUIRED |= {"gpt2": "vocab_size n_positions n_layer n_embd n_head"}


@pytest.mark.parametrize("unusual", [False, True], ids=["usual", "unusual"])
def test_a_setting_that_is_missing_is_what_transformers_takes(peer, family, head, unusual) -> None:
    """Each key of a config.json is left out, and read as the value that transformers' own class then has."""
    import transformers

    kind = type(transformers.AutoConfig.for_model(family))
    there = peer(family, head, initializer_range=0.05, **UNUSUAL[family]) if unusual else peer(family, head)
    table = json.loads((there.folder / "config.json").read_text())
    table.pop("layer_types", None)  # else it says what other keys would
    left_out = set()
    for name in table.keys() - MEANINGLESS:
        lacking = {key: value for key, value in table.items() if key != name}
        if name in REQUIRED[family].split():
            assert outcome(family, lacking) is None, name
            continue
        theirs = kind.from_dict(lacking).to_dict()
        usual = {name: theirs[name]} if name in theirs else {"layer_types": theirs["layer_types"]}
        assert outcome(family, lacking) == outcome(family, lacking | usual), name
        left_out.add(name)
    assert len(left_out) >= 5, left_out


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_number_of_key_heads_of_null_is_that_of_the_query_heads(peer, name) -> None:
    """As transformers reads it, which refuses a Mistral's."""
    there = peer(name, "CausalLM", num_key_value_heads=None)
    table = json.loads((there.folder / "config.json").read_text())
    config = outcome(name, table | {"num_key_value_heads": None})
    assert config is not None and config.kv_heads == there.model.config.num_key_value_heads == 4


def test_every_setting_of_transformers_is_known(peer, family, tmp_path) -> None:
    """What a default config.json of a family has is read, refused or known to mean nothing: no key is a stranger."""
    import transformers

    shutil.copytree(peer(family).folder, tmp_path / "theirs")
    path = tmp_path / "theirs/config.json"
    settings = transformers.AutoConfig.for_model(family).to_dict() | json.loads(path.read_text())
    path.write_text(json.dumps(settings))
    assert open_folder(tmp_path / "theirs").notes == ()


LLAMA_KEYS = """hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    rms_norm_eps rope_theta hidden_act max_position_embeddings vocab_size tie_word_embeddings torch_dtype"""
ENCODER_KEYS = """hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings
    layer_norm_eps type_vocab_size hidden_act position_embedding_type pad_token_id vocab_size torch_dtype"""
READ_ELSEWHERE = {  # by llama.cpp's converter, or by text-embeddings-inference
    "bert": ENCODER_KEYS,
    "roberta": ENCODER_KEYS,
    "distilbert": "dim n_layers n_heads hidden_dim activation max_position_embeddings vocab_size pad_token_id",
    "modernbert": """hidden_size intermediate_size num_hidden_layers num_attention_heads global_attn_every_n_layers
        local_attention global_rope_theta local_rope_theta norm_eps max_position_embeddings classifier_pooling
        hidden_activation pad_token_id vocab_size""",
    "gpt2": "n_ctx n_embd n_head n_layer n_positions layer_norm_epsilon activation_function vocab_size",
    "llama": LLAMA_KEYS + " attention_bias mlp_bias",
    "mistral": LLAMA_KEYS + " sliding_window",
    "qwen3": LLAMA_KEYS + " attention_bias",
}


def test_the_keys_that_other_programs_read_are_there(peer, family, head, tmp_path) -> None:
    """In the older of their two forms, which all of them take."""
    export(minillm.load(peer(family, head).folder), tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert not {"architectures", "model_type", *READ_ELSEWHERE[family].split()} - written.keys()
    assert "rope_parameters" not in written and "dtype" not in written


def test_every_setting_of_ours_is_asked_before_a_model_goes_out() -> None:
    """A new setting of ModelConfig must be given a place here: else it would be lost in silence."""
    named = {*PLAIN, "head", "head_bias"}
    for family in FAMILIES.values():
        assert named | family.settings.keys() == {field.name for field in dataclasses.fields(ModelConfig)}, family


@pytest.mark.parametrize(
    "settings, hint",
    [
        pytest.param({"position": "alibi"}, "GPT-2 it differs in: model.position is alibi, not learned", id="alibi"),
        pytest.param({"logit_softcap": 30.0}, "model.logit_softcap is 30.0, not none", id="softcap"),
        pytest.param({"head_bias": True}, "model.head_bias is true, not false", id="head bias"),
    ],
)
def test_a_model_that_no_family_has_is_refused(settings, hint) -> None:
    """What stands in the way of the nearest one is named."""
    with pytest.raises(InputError, match=hint):
        family_of(ModelConfig(vocab_size=5, **settings))
