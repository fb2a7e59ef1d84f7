"""Every family computes what transformers computes, and goes out as it came in."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from typing import Any

import pytest
import torch
from minillm_kernels.dispatch import backend
from safetensors.torch import load_file
from torch import Tensor

import minillm
from minillm.checkpoint.hf.families import FAMILIES, family_of
from minillm.checkpoint.hf.family import PLAIN
from minillm.checkpoint.hf.folder import open_folder, read_model
from minillm.checkpoint.hf.keys import MEANINGLESS, Keys
from minillm.errors import InputError
from minillm.exporting import export_model, export_run
from minillm.importing import import_folder
from minillm.model.config import ModelConfig

CLOSE = 1e-5  # of the largest number: float32, summed in another order


def far(came: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a share of the largest number."""
    return float((came - wanted).abs().max() / wanted.abs().max())


def ending(name: str) -> str:
    """Return the ending of a family's language-model class."""
    return "MaskedLM" if FAMILIES[name].class_for("masked_lm") else "CausalLM"


def export(loaded: Any, out: Any, **options: Any) -> Any:
    """Export what was loaded."""
    return export_model(loaded.model, out, tokenizer=loaded.tokenizer, origin=loaded.origin, **options)


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
    there = peer(name, ending(name), **settings)
    loaded = minillm.load(there.folder)
    tokens = torch.arange(3, 23)[None]
    wanted = there.model(tokens).logits
    assert far(loaded.model.logits(tokens), wanted) < CLOSE
    export(loaded, tmp_path / "out")
    again = type(there.model).from_pretrained(tmp_path / "out").eval()
    assert torch.equal(again(tokens).logits, wanted)


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
    there = peer(name, ending(name))
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
    there = peer(name, ending(name))
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
